"""Tensors of other libraries in and out, without a copy and without knowing the libraries.

In: NumPy arrays by their address (read-only ones too, which NumPy does not export), everything else
through DLPack. Out: through the `from_dlpack` that the caller's own library offers.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

from fd_core.api.device import HOST, Device
from fd_core.api.dtype import from_dlpack_code
from fd_core.api.platform import Platform
from fd_core.api.tensor import Storage, Tensor, contiguous_strides, from_numpy


class _DLTensor(ctypes.Structure):
    """dlpack.h, the part of DLManagedTensor that describes memory."""

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


#: A prototype of our own: the argument types of `ctypes.pythonapi`'s functions are shared by everybody.
_POINTER = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
_capsule_pointer = _POINTER(("PyCapsule_GetPointer", ctypes.pythonapi))


def is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or hasattr(value, "__dlpack__")


def to_tensor(value: Any, platform: Platform, device: Device, writable: bool) -> Tensor:
    """A view of `value`. TypeError or ValueError (without the argument's name) if it cannot be one."""
    if isinstance(value, Tensor):
        return value
    if not hasattr(value, "__dlpack__"):
        raise TypeError(f"want a tensor (NumPy, DLPack or fd_core), have {type(value).__name__}")
    if hasattr(value, "__array_interface__") and hasattr(value, "flags"):
        return _from_array(value, writable)
    return from_capsule(_export(value), platform, device)


def _from_array(array: Any, writable: bool) -> Tensor:
    if writable and not array.flags.writeable:
        raise ValueError("want a writable array, have a read-only one; fix: pass a copy")
    if not array.dtype.isnative:
        raise TypeError(f"want native byte order, have {array.dtype.str}")
    return from_numpy(array)


def _export(value: Any) -> Any:
    try:
        return value.__dlpack__()
    except Exception as error:
        name = type(value).__name__
        raise TypeError(f"want a tensor that exports DLPack, have {name}: {error}") from error


def from_capsule(capsule: Any, platform: Platform, device: Device) -> Tensor:
    """A view of the memory that a "dltensor" capsule describes. The capsule stays the owner."""
    view = _DLTensor.from_address(_capsule_pointer(capsule, b"dltensor"))
    if view.lanes != 1:
        raise TypeError(f"want scalar elements, have {view.lanes} lanes")
    shape = tuple(view.shape[: view.ndim])
    strides = tuple(view.strides[: view.ndim]) if view.strides else contiguous_strides(shape)
    dtype = from_dlpack_code(view.code, view.bits)
    place = _place(view.device_type, view.device_id, device)
    owner = None if place.code == HOST.code else platform
    ptr = (view.data or 0) + view.byte_offset
    span = 1 + sum((n - 1) * abs(s) for n, s in zip(shape, strides, strict=True)) if 0 not in shape else 0
    storage = Storage(ptr, span * dtype.itemsize, place, capsule, owner)
    return Tensor(ptr, shape, dtype, storage, strides)


def _place(code: int, index: int, device: Device) -> Device:
    """`device` itself if that is where the memory is; otherwise a name that says where."""
    if (code, index) == (device.code, device.index):
        return device
    return HOST if code == HOST.code else Device(f"DLPack device type {code}", index, code)


Export = Callable[[Tensor], Any]


def exporter(example: Any) -> Export:
    """How to hand a tensor back to the library that `example` comes from."""
    if isinstance(example, Tensor):
        return lambda tensor: tensor
    if hasattr(example, "__array_interface__") and hasattr(example, "flags"):
        return lambda tensor: tensor.numpy()
    found = _from_dlpack(example)
    return found if found is not None else lambda tensor: tensor


def _from_dlpack(example: Any) -> Export | None:
    """The array-API namespace's, else the library's own."""
    if hasattr(example, "__array_namespace__"):
        found: Export | None = getattr(example.__array_namespace__(), "from_dlpack", None)
        if found is not None:
            return found
    library = type(example).__module__.partition(".")[0]
    for name in (library, f"{library}.utils.dlpack", f"{library}.dlpack"):
        own: Export | None = getattr(sys.modules.get(name), "from_dlpack", None)
        if own is not None:
            return own
    return None
