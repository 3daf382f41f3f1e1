"""Kernels of another processor as Python callables, through an emulator and kernel_runner.cc."""

from __future__ import annotations

import builtins
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fd_core.api.tensor import Tensor


class Runner:
    """One emulated process; `runner.kernel(name)` takes what a compiled kernel takes."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)

    def kernel(self, name: str) -> Callable[..., None]:
        return lambda *args: self._call(name, args)

    def _call(self, name: str, args: tuple[Any, ...]) -> None:
        assert self._process.stdin is not None
        message = b"".join((_text(name), struct.pack("<I", len(args)), *map(_argument, args)))
        self._process.stdin.write(message)
        self._process.stdin.flush()
        if struct.unpack("<i", self._read(4))[0]:
            kind, text = self._text(), self._text()
            raise getattr(builtins, kind, RuntimeError)(text)
        for arg in args:
            if isinstance(arg, Tensor):
                _bytes(arg)[...] = np.frombuffer(self._read(_bytes(arg).size), np.uint8)

    def _read(self, count: int) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read(count)
        if len(data) != count:
            raise RuntimeError(f"the emulated process ended with status {self._process.wait(10)}")
        return data

    def _text(self) -> str:
        return self._read(struct.unpack("<I", self._read(4))[0]).decode()


def _text(text: str) -> bytes:
    return struct.pack("<I", len(text.encode())) + text.encode()


def _bytes(tensor: Tensor) -> np.ndarray[Any, Any]:
    """All bytes from the first element to the last, gaps of a strided view included."""
    from fd_core.api import dtype as dt

    span = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))
    count = span * tensor.dtype.itemsize if tensor.numel else 0
    return Tensor(tensor.ptr, (count,), dt.uint8, tensor.storage).numpy()


def _argument(value: Any) -> bytes:
    if value is None:
        return b"\x00"
    if isinstance(value, int):
        return struct.pack("<Bq", 1, value)
    if isinstance(value, float):
        return struct.pack("<Bd", 2, value)
    if isinstance(value, str):
        return b"\x03" + _text(value)
    return b"".join(_tensor(value))


def _tensor(tensor: Tensor) -> Iterator[bytes]:
    yield struct.pack("<BBBi", 4, tensor.dtype.code, tensor.dtype.bits, tensor.ndim)
    yield struct.pack(f"<{2 * tensor.ndim}q", *tensor.shape, *tensor.strides)
    data = _bytes(tensor).tobytes()
    yield struct.pack("<Q", len(data)) + data


def build_runner(compiler: str, source: Path, target: Path) -> None:
    import tvm_ffi.libinfo as info

    includes = [f"-I{path}" for path in (info.find_include_path(), info.find_dlpack_include_path())]
    command = [
        compiler,
        "-std=c++17",
        "-O1",
        *includes,
        str(source),
        "-rdynamic",
        "-ldl",
        "-o",
        str(target),
    ]
    subprocess.run(command, check=True)
