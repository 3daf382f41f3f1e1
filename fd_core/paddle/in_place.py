"""Ops that change tensors, as one operator of Paddle (`in_place.cc`), compiled when first needed.

Paddle's Python operators cannot declare what they change. The compiled operator can; its kernel hands the
tensors' addresses back to `_run`, which calls the op's frozen kernel.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import paddle

from fd_core.api.device import HOST
from fd_core.api.dtype import from_dlpack_code
from fd_core.api.tensor import Storage, Tensor
from fd_core.host.probe_cache import cache_folder
from fd_core.host.session import Session, current_session
from fd_core.ops.exchange import exchange
from fd_core.ops.stream import use_stream

SOURCE = Path(__file__).with_name("in_place.cc")


#: What the operator does: (changed tensors, tensors that are only read) -> None.
Work = Callable[[list[Tensor], list[Tensor]], None]


class ForeignTensor(ctypes.Structure):
    """As in in_place.cc."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("ndim", ctypes.c_int32),
        ("on_host", ctypes.c_int32),
        ("device_index", ctypes.c_int32),
        ("code", ctypes.c_int32),
        ("bits", ctypes.c_int32),
    )


@dataclass(frozen=True, slots=True)
class Call:
    """One operator of some graph."""

    session: Session
    work: Work
    counts: tuple[int, int]

    def run(self, changed: Any, read: Any) -> None:
        first, second = (
            [_tensor(foreign[i], self.session) for i in range(count)]
            for foreign, count in zip((changed, read), self.counts, strict=True)
        )
        with self._stream():
            self.work(first, second)

    def _stream(self) -> AbstractContextManager[Any]:
        device, table = self.session.device.device, exchange(paddle.Tensor)
        if device.code == HOST.code or table is None:
            return nullcontext()
        return use_stream(device, table.current_stream(device) or 0)


def _tensor(foreign: Any, session: Session) -> Tensor:
    device = HOST if foreign.on_host else session.device.device
    kind = from_dlpack_code(foreign.code, foreign.bits)
    shape, strides = (tuple(values[: foreign.ndim]) for values in (foreign.shape, foreign.strides))
    span = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if 0 not in shape else 0
    ptr = foreign.data or 0
    platform = None if foreign.on_host else session.platform
    return Tensor(ptr, shape, kind, Storage(ptr, span * kind.itemsize, device, None, platform), strides)


_calls: list[Call] = []
_lock = threading.Lock()

_Function = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.c_int64, ctypes.POINTER(ForeignTensor), ctypes.POINTER(ForeignTensor),
    ctypes.c_void_p, ctypes.c_int64,
)  # fmt: skip


def _run(call: int, changed: Any, read: Any, reason: int, size: int) -> int:
    """Called by the kernel, on any thread of Paddle's; 1 for a failure, its text in `reason`."""
    try:
        _calls[call].run(changed, read)
    except BaseException as error:  # nothing may pass through C++
        text = f"{type(error).__name__}: {error}".encode()[: size - 1] + b"\0"
        ctypes.memmove(reason, text, len(text))
        return 1
    return 0


_function = _Function(_run)


def call_in_place(work: Work, changed: Sequence[Any], read: Sequence[Any]) -> list[Any]:
    """The operator of one call, in the graph that is being built; what stands for `changed` after it."""
    with _lock:
        number = len(_calls)
        _calls.append(Call(current_session(), work, (len(changed), len(read))))
    pointer = ctypes.cast(_function, ctypes.c_void_p).value
    return list(operator()(list(changed), list(read), pointer, number))


_fill = itertools.count(1)


def memory(shape: Sequence[int], kind: Any) -> Any:
    """A tensor of the graph for an operator to write, filled with a number of its own because Paddle merges
    what is made alike."""
    return paddle.full(list(shape), float(next(_fill)), dtype=kind)


# -- the compiled operator --------------------------------------------------------------------------------

_NAME = "fd_core_in_place"
_COMPILE = """
import sys
from paddle.utils.cpp_extension import load
load(name=sys.argv[1], sources=[sys.argv[2]], build_directory=sys.argv[3], extra_cxx_cflags=["-O1", "-g0"])
"""


def library() -> Path:
    """Where the operator for this Paddle is kept: named after everything it depends on."""
    folder = cache_folder() or Path(tempfile.gettempdir()) / "fd-core"
    source = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    python = f"{sys.version_info.major}{sys.version_info.minor}"
    return folder / "paddle" / f"{_NAME}_{paddle.__version__}_py{python}_{source}.so"


def build(path: Path) -> None:
    """Compile in a process of its own (ten seconds, with a C++ compiler). RuntimeError with its words."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", _COMPILE, _NAME, str(SOURCE), folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        made = sorted(Path(folder).glob(f"{_NAME}/*.so"))
        if done.returncode or not made:
            fix = "install a C++ compiler and setuptools"
            raise RuntimeError(f"{SOURCE.name} cannot be compiled; fix: {fix}\n{done.stderr[-2000:]}")
        part = path.with_suffix(f".{os.getpid()}")
        shutil.copy(made[0], part)
        part.replace(path)


@cache
def operator() -> Callable[..., Any]:
    """The operator, compiled if it is not there yet.

    Paddle refuses new operators (it ends the process) once one of its Python operators has been used, so
    that `fd_core.paddle.static` asks for this one when it is imported.
    """
    try:
        from paddle.utils import cpp_extension
    except ImportError as error:
        raise RuntimeError(f"Paddle cannot load operators: {error}; fix: pip install setuptools") from error
    path = library()
    if not path.exists():
        build(path)
    cpp_extension.load_op_meta_info_and_register_op(str(path))
    return partial(paddle._C_ops._run_custom_op, _NAME)
