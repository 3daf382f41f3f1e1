"""The stream that kernels and copies of this thread run on, kept where kernels look for it: in TVM-FFI."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from fd_core.api.device import Device
from fd_core.api.ffi import tvm_ffi


@cache
def _library() -> ctypes.CDLL:
    tvm_ffi()
    import tvm_ffi.libinfo as info

    lib = ctypes.CDLL(info.find_libtvm_ffi())
    lib.TVMFFIEnvGetStream.argtypes = [ctypes.c_int32, ctypes.c_int32]
    lib.TVMFFIEnvGetStream.restype = ctypes.c_void_p
    lib.TVMFFIEnvSetStream.argtypes = [ctypes.c_int32, ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p]
    lib.TVMFFIEnvSetStream.restype = ctypes.c_int
    return lib


def current_stream(device: Device) -> int:
    """The raw handle; 0 is the device's default stream."""
    return _library().TVMFFIEnvGetStream(device.code, device.index) or 0


@contextmanager
def use_stream(device: Device, stream: int) -> Iterator[None]:
    """Kernels and copies of this thread run on `stream` inside the block."""
    before = ctypes.c_void_p()
    _library().TVMFFIEnvSetStream(device.code, device.index, stream, ctypes.byref(before))
    try:
        yield
    finally:
        _library().TVMFFIEnvSetStream(device.code, device.index, before, None)
