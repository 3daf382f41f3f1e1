"""The CUDA driver API through ctypes: the calls this plug-in makes, each checked.

Nothing here needs a toolkit, a runtime library or a framework; `libcuda.so.1` comes with the driver.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from functools import cache

from fd_core.api.platform import DeviceError

LIBRARY = "libcuda.so.1"
OUT_OF_MEMORY = 2
NO_DEVICE = 100
DEVICE_UNAVAILABLE = 46

#: CUdevice_attribute
COMPUTE_MODE, MAJOR, MINOR, PROCESSORS = 20, 75, 76, 16
#: CUstream_flags, CUevent_flags, CUstreamCaptureMode
NON_BLOCKING, DISABLE_TIMING, CAPTURE_THREAD_LOCAL = 1, 2, 1

_POINTER = ctypes.POINTER(c_void_p)
_INT = ctypes.POINTER(c_int)
_SIZE = ctypes.POINTER(c_size_t)
#: name -> argument types; every function returns a CUresult.
_SIGNATURES: dict[str, tuple[type, ...]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (_INT,),
    "cuGetErrorName": (c_int, ctypes.POINTER(c_char_p)),
    "cuGetErrorString": (c_int, ctypes.POINTER(c_char_p)),
    "cuDeviceGetCount": (_INT,),
    "cuDeviceGet": (_INT, c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (_INT, c_int, c_int),
    "cuDeviceTotalMem_v2": (_SIZE, c_int),
    "cuDevicePrimaryCtxRetain": (_POINTER, c_int),
    "cuCtxSetCurrent": (c_void_p,),
    "cuCtxSynchronize": (),
    "cuMemGetInfo_v2": (_SIZE, _SIZE),
    "cuMemAlloc_v2": (ctypes.POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemHostAlloc": (_POINTER, c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuMemcpyDtoDAsync_v2": (c_uint64, c_uint64, c_size_t, c_void_p),
    "cuStreamCreate": (_POINTER, c_uint),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamWaitEvent": (c_void_p, c_void_p, c_uint),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, _POINTER),
    "cuEventCreate": (_POINTER, c_uint),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventQuery": (c_void_p,),
    "cuEventSynchronize": (c_void_p,),
    "cuEventDestroy_v2": (c_void_p,),
    "cuGraphInstantiateWithFlags": (_POINTER, c_void_p, c_uint64),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphDestroy": (c_void_p,),
    "cuGraphExecDestroy": (c_void_p,),
}


class CudaError(DeviceError):
    """A driver call failed; `code` is the CUresult."""

    def __init__(self, call: str, code: int) -> None:
        super().__init__(f"cuda: {call}: {error_name(code)} ({error_text(code)})")
        self.code = code


@cache
def library() -> ctypes.CDLL:
    """The driver's library with typed functions. OSError without a driver."""
    lib = ctypes.CDLL(LIBRARY)
    for name, types in _SIGNATURES.items():
        function = getattr(lib, name)
        function.argtypes, function.restype = types, c_int
    return lib


def call(name: str, *args: object) -> None:
    """Raises CudaError unless the driver answers CUDA_SUCCESS."""
    code = getattr(library(), name)(*args)
    if code:
        raise CudaError(name, code)


def error_name(code: int) -> str:
    return _text("cuGetErrorName", code) or f"CUresult {code}"


def error_text(code: int) -> str:
    return _text("cuGetErrorString", code) or "unknown"


def _text(function: str, code: int) -> str:
    found = c_char_p()
    getattr(library(), function)(code, byref(found))
    return (found.value or b"").decode()


def driver_version() -> int:
    """1000 * major + 10 * minor of the newest CUDA that the driver serves."""
    value = c_int()
    call("cuDriverGetVersion", byref(value))
    return value.value


def device_count() -> int:
    value = c_int()
    call("cuDeviceGetCount", byref(value))
    return value.value


def attribute(which: int, index: int) -> int:
    value = c_int()
    call("cuDeviceGetAttribute", byref(value), which, index)
    return value.value


def device_name(index: int) -> str:
    text = ctypes.create_string_buffer(256)
    call("cuDeviceGetName", text, len(text), index)
    return text.value.decode(errors="replace")


def total_memory(index: int) -> int:
    value = c_size_t()
    call("cuDeviceTotalMem_v2", byref(value), index)
    return value.value


def capability(index: int) -> int:
    """10 * major + minor."""
    return 10 * attribute(MAJOR, index) + attribute(MINOR, index)


def memory_info() -> tuple[int, int]:
    """(free, total) bytes of the current context's device."""
    free, total = c_size_t(), c_size_t()
    call("cuMemGetInfo_v2", byref(free), byref(total))
    return free.value, total.value


def handle(name: str, *args: object) -> int:
    """The handle that a creating call writes into its first parameter."""
    made = c_void_p()
    call(name, byref(made), *args)
    return made.value or 0


def handle_of_capture(stream: int) -> int:
    """The graph that a capture on `stream` recorded."""
    made = c_void_p()
    call("cuStreamEndCapture", stream, byref(made))
    return made.value or 0
