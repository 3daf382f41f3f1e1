"""Tensors of other libraries in and out, without a copy and without knowing the libraries.

In: NumPy arrays by their address (read-only ones too, which NumPy does not export), everything else
through DLPack. Out: through the `from_dlpack` that the caller's own library offers.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fd_core.api.device import HOST, Device
from fd_core.api.dtype import from_dlpack_code
from fd_core.api.platform import Platform
from fd_core.api.tensor import Storage, Tensor, TensorSpec, contiguous_strides, from_numpy
from fd_core.ops.exchange import DLManagedTensorVersioned, DLTensor, exchange
from fd_core.ops.stream import current_stream, environment_stream, library_of

#: A prototype of our own: the argument types of `ctypes.pythonapi`'s functions are shared by everybody.
_POINTER = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
_capsule_pointer = _POINTER(("PyCapsule_GetPointer", ctypes.pythonapi))
_IS_VALID = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)
_is_capsule = _IS_VALID(("PyCapsule_IsValid", ctypes.pythonapi))


def is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or hasattr(value, "__dlpack__")


def to_tensor(value: Any, platform: Platform, device: Device, writable: bool) -> Tensor:
    """A view of `value`. TypeError or ValueError (without the argument's name) if it cannot be one."""
    if isinstance(value, Tensor):
        return value
    if not hasattr(value, "__dlpack__"):
        raise TypeError(
            f"want a tensor (NumPy, DLPack or fd_core), have {type(value).__name__}{_hint(value)}"
        )
    if hasattr(value, "__array_interface__") and hasattr(value, "flags"):
        return _from_array(value, writable)
    if writable and is_immutable(value):
        raise ValueError(f"want a tensor that may be written, have {type(value).__name__}, which never may")
    return from_capsule(_export(constant(value), device), platform, device, writable)


_immutable: dict[type[Any], bool] = {}


def is_immutable(value: Any) -> bool:
    """Whether the library refuses every assignment to its tensors; DLPack does not tell. Asked once per
    type, with an assignment of nothing."""
    kind = type(value)
    if kind not in _immutable and exchange(kind) is None and getattr(value, "ndim", 0) > 0:
        try:
            value[:0] = value[:0]
            _immutable[kind] = False
        except TypeError:
            _immutable[kind] = True
    return _immutable.get(kind, False)


def _hint(value: Any) -> str:
    """A value of some library's graph, whose support has not been asked for?"""
    support = f"fd_core.{library_of(type(value))}"
    known = all(importlib.util.find_spec(name) for name in (support, f"{support}.static"))
    return f"; fix: inside a graph, import {support}.static first" if known else ""


def _from_array(array: Any, writable: bool) -> Tensor:
    if writable and not array.flags.writeable:
        raise ValueError("want a writable array, have a read-only one; fix: pass a copy")
    if not array.dtype.isnative:
        raise TypeError(f"want native byte order, have {array.dtype.str}")
    return from_numpy(array)


def constant(value: Any) -> Any:
    """`value` without its gradient where its library is not recording any (`no_grad`): ops have no
    backward pass, so that a recording library's own refusal stands."""
    if getattr(value, "requires_grad", False) is True and not records(type(value)):
        return value.detach()
    return value


def records(kind: type) -> bool:
    """Whether the library of a tensor type records gradients now (as far as it tells)."""
    enabled = getattr(sys.modules.get(library_of(kind)), "is_grad_enabled", None)
    return enabled is None or bool(enabled())


def _export(value: Any, device: Device) -> Any:
    """A DLPack capsule, versioned where the library can, without a wait on its stream or on ours."""
    try:
        options = _export_options(value, device)
        try:
            return value.__dlpack__(max_version=(1, 1), **options)
        except TypeError:  # a library from before DLPack 1.0
            return value.__dlpack__(**options)
    except Exception as error:
        name = type(value).__name__
        raise TypeError(f"want a tensor that exports DLPack, have {name}: {error}") from error


def _export_options(value: Any, device: Device) -> dict[str, int]:
    """`stream`: -1 ("do not wait") where the op will run on the library's own current stream, else the
    stream that it will run on, which the library then makes wait for its work."""
    if device.code == HOST.code or value.__dlpack_device__()[0] == HOST.code:
        return {}
    if current_stream(value, device) is not None:
        return {"stream": -1}
    stream = environment_stream(device)
    return {"stream": stream} if stream else {}


_READ_ONLY = 1  # DLPACK_FLAG_BITMASK_READ_ONLY


def from_capsule(capsule: Any, platform: Platform, device: Device, writable: bool = False) -> Tensor:
    """A view of the memory that a "dltensor" capsule, versioned or not, describes. The capsule stays
    the owner. ValueError for read-only memory where `writable` memory is wanted."""
    view = _described(capsule, writable)
    if view.lanes != 1:
        raise TypeError(f"want scalar elements, have {view.lanes} lanes")
    shape = tuple(view.shape[: view.ndim])
    if not view.data and 0 not in shape:
        raise ValueError("want a tensor with memory, have one without (traced, or shape only)")
    strides = tuple(view.strides[: view.ndim]) if view.strides else contiguous_strides(shape)
    dtype = from_dlpack_code(view.code, view.bits)
    place = _place(view.device_type, view.device_id, device)
    owner = None if place.code == HOST.code else platform
    ptr = (view.data or 0) + view.byte_offset
    span = 1 + sum((n - 1) * abs(s) for n, s in zip(shape, strides, strict=True)) if 0 not in shape else 0
    storage = Storage(ptr, span * dtype.itemsize, place, capsule, owner)
    return Tensor(ptr, shape, dtype, storage, strides)


def _described(capsule: Any, writable: bool) -> DLTensor:
    if _is_capsule(capsule, b"dltensor"):
        return DLTensor.from_address(_capsule_pointer(capsule, b"dltensor"))
    managed = DLManagedTensorVersioned.from_address(_capsule_pointer(capsule, b"dltensor_versioned"))
    if writable and managed.flags & _READ_ONLY:
        raise ValueError("want a writable tensor, have a read-only one; fix: pass a copy")
    view: DLTensor = managed.tensor
    return view


def _place(code: int, index: int, device: Device) -> Device:
    """`device` itself if that is where the memory is; otherwise a name that says where."""
    if (code, index) == (device.code, device.index):
        return device
    return HOST if code == HOST.code else Device(f"DLPack device type {code}", index, code)


Export = Callable[[Tensor], Any]
Allocator = Callable[[TensorSpec], Any]


def allocator(example: Any, platform: Platform, device: Device) -> Allocator:
    """Where results come from: the allocator of the library that `example` comes from, so that its
    memory follows that library's streams; the platform's for all others."""
    table = None if example is None else exchange(type(example))
    if table is None or not table.allocates:
        return platform.empty
    return lambda spec: table.allocate(spec, device)


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
    library = library_of(type(example))
    for name in (library, f"{library}.utils.dlpack", f"{library}.dlpack"):
        own: Export | None = getattr(sys.modules.get(name), "from_dlpack", None)
        if own is not None:
            return own
    return None


#: (definition, args, kwargs) -> what the call stands for in a graph that a library is building.
Tracer = Callable[[Any, Sequence[Any], Mapping[str, Any]], Any]

_tracers: dict[type[Any], Tracer] = {}


def register_tracer(kind: type[Any], tracer: Tracer) -> None:
    """Calls with an argument of type `kind`, a value of a graph and no memory, go to `tracer`."""
    _tracers[kind] = tracer


def tracer_of(values: Iterable[Any]) -> Tracer | None:
    if not _tracers:
        return None
    return next((_tracers[type(v)] for v in values if type(v) in _tracers), None)
