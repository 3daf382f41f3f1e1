"""Whose stream an op runs on: the guest's current one, for the duration of the call.

Kernels run on TVM-FFI's environment stream. A tensor whose type has an exchange table and that is passed
to a compiled kernel as it is sets that stream itself, in C. For all other calls this module asks the
first guest tensor's library and sets it here. A device without streams (the host) is never asked.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from fd_core.api.device import HOST, Device
from fd_core.api.ffi import tvm_ffi
from fd_core.api.tensor import Tensor
from fd_core.ops.exchange import exchange

#: Current stream on a device, as a raw handle; None if the library has none there.
StreamSource = Callable[[Device], "int | None"]

_sources: dict[str, StreamSource] = {}


def register_stream_source(library: str, source: StreamSource) -> None:
    """How to ask `library` (the first part of its tensor types' module) for its current stream.

    For libraries whose tensors have neither an exchange table nor `__tvm_ffi_env_stream__`. A device's
    plug-in registers the libraries that live on its device, where it is loaded.
    """
    _sources[library] = source


def library_of(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def current_stream(value: Any, device: Device) -> int | None:
    """The stream that the library of the guest tensor `value` works on now; None if it tells none."""
    table = exchange(type(value))
    stream = None if table is None else table.current_stream(device)
    if stream is None and hasattr(value, "__tvm_ffi_env_stream__"):
        return int(value.__tvm_ffi_env_stream__())
    if stream is None:
        source = _source(library_of(type(value)))
        return None if source is None else source(device)
    return stream


def _source(library: str) -> StreamSource | None:
    if library not in _sources and library in sys.modules:
        importlib.import_module("fd_core.compat.streams")
    return _sources.get(library)


def on_guests_stream(values: Iterable[Any], device: Device) -> AbstractContextManager[Any]:
    """A context in which kernels run on the current stream of the first guest among `values`.

    Without a guest, or with none that tells, the environment stream stays what it is.
    """
    if device.code == HOST.code:
        return nullcontext()
    for value in values:
        if not isinstance(value, Tensor) and hasattr(value, "__dlpack__"):
            stream = current_stream(value, device)
            if stream is not None:
                return use_stream(device, stream)
    return nullcontext()


def use_stream(device: Device, stream: int) -> AbstractContextManager[Any]:
    """`stream` is the environment stream of `device` inside the context, and the former one after it."""
    ffi = tvm_ffi()
    found: AbstractContextManager[Any] = ffi.use_raw_stream(_ffi_device(ffi, device), stream)
    return found


def environment_stream(device: Device) -> int:
    """Raw handle of the stream that kernels run on now; 0 is the device's default."""
    ffi = tvm_ffi()
    return int(ffi.get_raw_stream(_ffi_device(ffi, device)) or 0)


def _ffi_device(ffi: Any, device: Device) -> Any:
    return ffi.device(device.code, device.index)
