"""A tensor library of a device with streams, as far as DLPack shows one; its memory is the host's.

`Far` offers an exchange table (C functions made with ctypes), `Old` only `__dlpack__`. Both are on the
device kDLExtDev, which TVM-FFI keeps an environment stream for, and count the waits they are asked for.
"""

from __future__ import annotations

import ctypes
from typing import Any, ClassVar

import numpy as np

from fd_core.api.device import Device, DeviceInfo, ProbeReport
from fd_core.api.host_platform import HostPlatform
from fd_core.api.kernel import Kernel
from fd_core.api.tensor import Storage, Tensor, TensorSpec, from_numpy
from fd_core.api.verdict import YES
from fd_core.host.dispatch import Dispatch, FrozenOp
from fd_core.host.ledger import Ledger
from fd_core.host.session import Session
from fd_core.ops.exchange import DLManagedTensorVersioned, DLTensor, ExchangeTable

DEVICE = Device("far", 0, 12)
INFO = DeviceInfo(DEVICE, "far", "far", 0, 1 << 20)


class Platform(HostPlatform):
    """Host memory under another device's name."""

    name: ClassVar[str] = "far"
    device_type: ClassVar[str] = "far"

    @classmethod
    def probe(cls) -> ProbeReport:
        return ProbeReport((INFO,))

    def open(self, index: int) -> DeviceInfo:
        return INFO

    def empty(self, spec: TensorSpec) -> Tensor:
        near = super().empty(spec)
        return Tensor(near.ptr, spec.shape, spec.dtype, Storage(near.ptr, spec.nbytes, DEVICE, near, self))


class Far:
    """float32 on the far device. `stream` is the library's current one."""

    stream: ClassVar[int] = 0
    waits: ClassVar[list[Any]] = []
    made: ClassVar[int] = 0

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = np.ascontiguousarray(array, np.float32)
        near = from_numpy(self.array)
        storage = Storage(near.ptr, near.nbytes, DEVICE, near)
        self.view = Tensor(near.ptr, near.shape, near.dtype, storage)

    @property
    def dtype(self) -> str:
        return "far.float32"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def __dlpack_device__(self) -> tuple[int, int]:
        return (DEVICE.code, DEVICE.index)

    def __dlpack__(self, stream: int | None = None) -> Any:
        if stream != -1:
            self.waits.append(stream)
        return self.view.__dlpack__()


class Old(Far):
    """Without an exchange table: the library is asked some other way, or not at all."""

    waits: ClassVar[list[Any]] = []


_kept: list[Any] = []
_arrays: dict[int, np.ndarray[Any, Any]] = {}
_Delete = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
_FromObject = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.POINTER(ctypes.c_void_p))
_nothing = _Delete(lambda _: None)


def _managed(array: np.ndarray[Any, Any]) -> DLManagedTensorVersioned:
    shape = (ctypes.c_int64 * array.ndim)(*array.shape)
    strides = (ctypes.c_int64 * array.ndim)(*(s // array.itemsize for s in array.strides))
    view = DLTensor(array.ctypes.data, 12, 0, array.ndim, 2, 32, 1, shape, strides, 0)
    managed = DLManagedTensorVersioned(1, 2, None, ctypes.cast(_nothing, ctypes.c_void_p).value, 0, view)
    _arrays[ctypes.addressof(managed)] = array
    _kept.append((managed, shape, strides))
    return managed


def _from_object(tensor: Far, out: Any) -> int:
    out[0] = ctypes.addressof(_managed(tensor.array))
    return 0


def _allocate(like: Any, out: Any, context: Any, set_error: Any) -> int:
    shape = tuple(like.contents.shape[: like.contents.ndim])
    if shape == (13, 8):
        set_error(context, b"MemoryError", b"thirteen rows are bad luck")
        return -1
    Far.made += 1
    out[0] = ctypes.addressof(_managed(np.zeros(shape, np.float32)))
    return 0


def _to_object(managed: int, out: Any) -> int:
    tensor = Far(_arrays[managed])
    _kept.append(tensor)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(tensor))
    out[0] = id(tensor)
    return 0


def _current_stream(code: int, index: int, out: Any) -> int:
    out[0] = Far.stream
    return 0 if (code, index) == (12, 0) else -1


def _table() -> Any:
    kinds = dict(ExchangeTable._fields_)
    pointer = ctypes.cast(_kept_function(_FromObject(_from_object)), ctypes.c_void_p).value
    functions = (
        kinds["allocate"](_allocate),
        kinds["to_object"](_to_object),
        kinds["current_stream"](_current_stream),
    )
    allocate, to_object, stream = functions
    table = ExchangeTable(1, 2, None, allocate, pointer, to_object, None, stream)
    _kept.append((table, functions))
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return new(ctypes.addressof(table), b"dlpack_exchange_api", None)


def _kept_function(function: Any) -> Any:
    _kept.append(function)
    return function


Far.__dlpack_c_exchange_api__ = _table()  # type: ignore[attr-defined]
Old.__dlpack_c_exchange_api__ = None  # type: ignore[attr-defined]


def session(op: str, target: Any) -> Session:
    """One op on the far device."""
    frozen = FrozenOp(op, Kernel(op, "far", target), target, ())
    dispatch = Dispatch("far:0", {op: frozen}, {op: YES})
    return Session(Platform(), INFO, dispatch, [], {}, Ledger(dispatch, {}))
