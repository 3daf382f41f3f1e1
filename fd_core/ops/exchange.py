"""DLPack's exchange table: what a tensor type offers in C, read without knowing the library.

A type that has one (`__dlpack_c_exchange_api__`, dlpack.h 1.2) is passed to compiled kernels as it is.
From Python two more of its functions are wanted: the stream that the library queues work on now, and
memory from the library's own allocator.
"""

from __future__ import annotations

import ctypes
import threading
from typing import Any

from fd_core.api.device import Device
from fd_core.api.tensor import TensorSpec

ATTRIBUTE = "__dlpack_c_exchange_api__"


class DLTensor(ctypes.Structure):
    """dlpack.h, with the device and the element type written out."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class DLManagedTensorVersioned(ctypes.Structure):
    """dlpack.h 1.x."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", DLTensor),
    )


# The library's functions may raise Python errors, so they are called with the interpreter's lock held.
_SetError = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p)
_Allocate = ctypes.PYFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(DLTensor), ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p, _SetError
)
_ToObject = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p))
_Stream = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_int32, ctypes.c_int32, ctypes.POINTER(ctypes.c_void_p))


class ExchangeTable(ctypes.Structure):
    """DLPackExchangeAPI; the members that core does not call are bare pointers."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("previous", ctypes.c_void_p),
        ("allocate", _Allocate),
        ("from_object", ctypes.c_void_p),
        ("to_object", _ToObject),
        ("view_of_object", ctypes.c_void_p),
        ("current_stream", _Stream),
    )


_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_release = ctypes.PYFUNCTYPE(None, ctypes.py_object)(("Py_DecRef", ctypes.pythonapi))


#: More than array libraries allow.
MAX_DIMS = 64


class Request:
    """A tensor that is asked for, and where the answers go: made once, used by one call at a time."""

    __slots__ = ("_result", "like", "like_at", "managed", "managed_at", "result_at", "shape")

    def __init__(self) -> None:
        self.shape = (ctypes.c_int64 * MAX_DIMS)()
        self.like = DLTensor(lanes=1, shape=ctypes.cast(self.shape, ctypes.POINTER(ctypes.c_int64)))
        self.managed = ctypes.c_void_p()
        self._result = ctypes.py_object()
        self.like_at, self.managed_at = ctypes.pointer(self.like), ctypes.pointer(self.managed)
        self.result_at = ctypes.cast(ctypes.pointer(self._result), ctypes.POINTER(ctypes.c_void_p))

    def describe(self, spec: TensorSpec, device: Device) -> None:
        like, kind = self.like, spec.dtype
        like.ndim = ndim = len(spec.shape)
        self.shape[:ndim] = [*spec.shape]
        like.code, like.bits = kind.code, kind.bits
        like.device_type, like.device_id = device.code, device.index

    def take(self) -> Any:
        """The object that C code has put a new reference to into `result_at`."""
        owned = self._result.value
        _release(owned)
        return owned


#: Those that no call uses now.
_requests: list[Request] = []


class Exchange:
    """The table of one tensor type."""

    __slots__ = ("_allocate", "_stream", "_to_object", "type")

    def __init__(self, table: ExchangeTable, kind: type[Any]) -> None:
        self.type = kind
        self._allocate, self._to_object, self._stream = (
            table.allocate,
            table.to_object,
            table.current_stream,
        )

    @property
    def allocates(self) -> bool:
        return bool(self._allocate) and bool(self._to_object)

    def current_stream(self, device: Device) -> int | None:
        """Raw handle of the stream the library works on; None if it has none for `device`."""
        stream = ctypes.c_void_p()
        if not self._stream or self._stream(device.code, device.index, ctypes.byref(stream)):
            return None
        return stream.value or 0

    def allocate(self, spec: TensorSpec, device: Device) -> Any:
        """An uninitialised tensor of the library's own. MemoryError with the library's words."""
        request = _requests.pop() if _requests else Request()
        request.describe(spec, device)
        if self._allocate(request.like_at, request.managed_at, None, _note_problem):
            raise MemoryError(
                f"{self.type.__name__}: want {spec.nbytes} bytes on {device}, {_take_problem()}"
            )
        if self._to_object(request.managed, request.result_at):
            raise MemoryError(f"{self.type.__name__}: cannot take over its own memory on {device}")
        owned = request.take()
        _requests.append(request)
        return owned


_problems = threading.local()


def _set_problem(_: Any, kind: bytes, message: bytes) -> None:
    _problems.text = f"{kind.decode()}: {message.decode()}"


#: Where an allocator says why it failed; kept, because C holds no reference.
_note_problem = _SetError(_set_problem)


def _take_problem() -> str:
    text: str = getattr(_problems, "text", "and the library gives no reason")
    _problems.text = "and the library gives no reason"
    return text


_known: dict[type[Any], Exchange | None] = {}


def exchange(kind: type[Any]) -> Exchange | None:
    """The table of a tensor type; None without one, or with one that this version cannot read."""
    if kind not in _known:
        _known[kind] = _exchange(kind)
    return _known[kind]


def _exchange(kind: type[Any]) -> Exchange | None:
    capsule = getattr(kind, ATTRIBUTE, None)
    if capsule is None or not _plain(kind):
        return None
    address = capsule if isinstance(capsule, int) else _pointer(capsule, b"dlpack_exchange_api")
    table = ExchangeTable.from_address(address)
    return Exchange(table, kind) if table.major == 1 else None


def _plain(kind: type) -> bool:
    """Whether its objects are memory: a sub-class that reroutes operators may stand for no memory."""
    for cls in kind.__mro__:
        if ATTRIBUTE in vars(cls):
            return True
        if any(name.endswith("_dispatch__") for name in vars(cls)):
            return False
    return False
