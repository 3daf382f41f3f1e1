"""The one tensor: a strided view of a storage on some device, zero copy everywhere.

A `Tensor` is what kernels receive. It carries a TVM-FFI handle, made on first use and kept, so a view
that is reused (persistent step buffers, weights) costs one attribute read per call.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from fd_core.api import dtype as dt
from fd_core.api.device import HOST, Device
from fd_core.api.dtype import DType
from fd_core.api.ffi import tvm_ffi

if TYPE_CHECKING:
    import numpy as np

    from fd_core.api.platform import Platform

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Shape (elements) and dtype of a contiguous tensor that is still to be made."""

    shape: Shape
    dtype: DType

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Storage:
    """Who owns the bytes. `owner` keeps them alive; `platform` copies them (None: host memory)."""

    ptr: int
    nbytes: int
    device: Device
    owner: Any = None
    platform: Platform | None = None

    @property
    def on_host(self) -> bool:
        return self.device.code == HOST.code


def contiguous_strides(shape: Shape) -> Shape:
    """Row-major strides of `shape`, in elements."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


class Tensor:
    """A view: `ptr` (address of element 0), `shape` and `strides` in elements, `dtype`, `storage`."""

    __slots__ = ("_handle", "_managed", "dtype", "ptr", "shape", "storage", "strides")

    def __init__(
        self, ptr: int, shape: Shape, dtype: DType, storage: Storage, strides: Shape | None = None
    ) -> None:
        self.ptr = ptr
        self.shape = shape
        self.strides = contiguous_strides(shape) if strides is None else strides
        self.dtype = dtype
        self.storage = storage
        self._handle: Any = None
        self._managed: Any = None

    @property
    def device(self) -> Device:
        return self.storage.device

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize

    @property
    def spec(self) -> TensorSpec:
        return TensorSpec(self.shape, self.dtype)

    @property
    def is_contiguous(self) -> bool:
        """Row-major without holes; size-1 dimensions may have any stride, as in NumPy."""
        if 0 in self.shape:
            return True
        want = contiguous_strides(self.shape)
        return all(n == 1 or s == w for n, s, w in zip(self.shape, self.strides, want, strict=True))

    def __repr__(self) -> str:
        return f"Tensor({list(self.shape)}, {self.dtype}, {self.device})"

    # -- views -------------------------------------------------------------------------------

    def view(self, *shape: int) -> Tensor:
        """The same elements under another shape; one dimension may be -1. Needs contiguity."""
        if not self.is_contiguous:
            raise ValueError(f"view{shape}: wants a contiguous tensor, have strides {self.strides}")
        return Tensor(self.ptr, self._resolve(shape), self.dtype, self.storage)

    def _resolve(self, shape: Shape) -> Shape:
        known = prod(n for n in shape if n != -1)
        if -1 in shape and known:
            shape = tuple(self.numel // known if n == -1 else n for n in shape)
        if prod(shape) != self.numel or shape.count(-1) > 0:
            raise ValueError(f"view: {self.numel} elements {self.shape} cannot become {shape}")
        return shape

    def slice(self, start: int, stop: int, dim: int = 0) -> Tensor:
        """Elements [start, stop) along `dim`."""
        if not 0 <= start <= stop <= self.shape[dim]:
            raise IndexError(f"slice [{start}, {stop}) outside dimension {dim} of {self.shape}")
        shape = self.shape[:dim] + (stop - start,) + self.shape[dim + 1 :]
        ptr = self.ptr + start * self.strides[dim] * self.dtype.itemsize
        return Tensor(ptr, shape, self.dtype, self.storage, self.strides)

    def select(self, index: int, dim: int = 0) -> Tensor:
        """The sub-tensor at `index` along `dim`, which disappears."""
        one = self.slice(index, index + 1, dim)
        cut = (slice(None, dim), slice(dim + 1, None))
        shape, strides = ((*v[cut[0]], *v[cut[1]]) for v in (one.shape, one.strides))
        return Tensor(one.ptr, shape, self.dtype, self.storage, strides)

    def permute(self, *dims: int) -> Tensor:
        """Dimensions in another order."""
        if sorted(dims) != list(range(self.ndim)):
            raise ValueError(f"permute{dims}: wants each of {self.ndim} dimensions once")
        shape, strides = (tuple(v[d] for d in dims) for v in (self.shape, self.strides))
        return Tensor(self.ptr, shape, self.dtype, self.storage, strides)

    def bitcast(self, dtype: DType) -> Tensor:
        """The same bytes read as another dtype of equal width."""
        if dtype.bits != self.dtype.bits:
            raise ValueError(f"bitcast: {self.dtype} has {self.dtype.bits} bits, {dtype} {dtype.bits}")
        return Tensor(self.ptr, self.shape, dtype, self.storage, self.strides)

    # -- host access ---------------------------------------------------------------------------

    def numpy(self) -> np.ndarray[Any, Any]:
        """The same memory as an array. Raises for device memory: copy with `Platform.to_host`."""
        import numpy as np

        if not self.storage.on_host:
            raise TypeError(f"numpy(): {self!r} is not in host memory; use Platform.to_host")
        itemsize = self.dtype.itemsize
        if self.numel == 0:
            return np.empty(self.shape, self.dtype.numpy())
        span = 1 + sum((n - 1) * abs(s) for n, s in zip(self.shape, self.strides, strict=True))
        raw: Any = (ctypes.c_char * (span * itemsize)).from_address(self.ptr)
        raw._fd_owner = self.storage  # keeps the bytes alive as long as the array's base
        flat = np.frombuffer(raw, dtype=self.dtype.numpy())
        strides = tuple(s * itemsize for s in self.strides)
        return np.lib.stride_tricks.as_strided(flat, self.shape, strides)

    def copy_from(self, src: Tensor) -> None:
        """Copy `src` (same shape and dtype) into this tensor, across devices where needed."""
        if src.shape != self.shape or src.dtype != self.dtype:
            raise ValueError(f"copy_from: want {self.shape} {self.dtype}, have {src.shape} {src.dtype}")
        platform = self.storage.platform or src.storage.platform
        if platform is None:
            self.numpy()[...] = src.numpy()
        else:
            platform.copy_(self, src)

    # -- protocols -------------------------------------------------------------------------------

    def __tvm_ffi_object__(self) -> Any:
        if self._handle is None:
            self._handle, self._managed = _make_handle(self)
        return self._handle

    def __dlpack_device__(self) -> tuple[int, int]:
        return (self.device.code, self.device.index)

    def __dlpack__(self, **_: Any) -> Any:
        managed = _managed_tensor(self)
        address = ctypes.addressof(managed)
        _EXPORTED[address] = (managed, self)
        managed.deleter = _DELETER
        return _new_capsule(address, b"dltensor", _CAPSULE_DESTRUCTOR)


def from_numpy(array: np.ndarray[Any, Any]) -> Tensor:
    """A host tensor over `array`'s memory, read-only memory included; no copy."""
    itemsize = array.dtype.itemsize
    if any(stride % itemsize for stride in array.strides):
        raise ValueError(f"from_numpy: strides {array.strides} are no multiples of {itemsize} bytes")
    ptr = int(array.__array_interface__["data"][0])
    storage = Storage(ptr, array.nbytes, HOST, owner=array)
    strides = tuple(stride // itemsize for stride in array.strides) if array.size else None
    return Tensor(ptr, array.shape, dt.dtype(array.dtype.name), storage, strides)


def empty_host(spec: TensorSpec) -> Tensor:
    """An uninitialised host tensor (64-byte aligned)."""
    import numpy as np

    raw = np.empty(spec.nbytes + 64, np.uint8)
    ptr = int(raw.__array_interface__["data"][0])
    aligned = (ptr + 63) & ~63
    return Tensor(aligned, spec.shape, spec.dtype, Storage(aligned, spec.nbytes, HOST, owner=raw))


# -- DLPack (dlpack.h 0.x structures: stable, and what every consumer reads) -------------------------


class _DLDevice(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("id", ctypes.c_int32))


class _DLDataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _DLDevice),
        ("ndim", ctypes.c_int32),
        ("dtype", _DLDataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _DLManagedTensor(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_DLManagedTensor))
_DLManagedTensor._fields_ = [
    ("dl_tensor", _DLTensor),
    ("manager_ctx", ctypes.c_void_p),
    ("deleter", _Deleter),
]
_CapsuleDestructor = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_capsule_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_capsule_is_valid.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype = ctypes.c_void_p
_capsule_pointer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]

#: Exported structures by address, alive until their consumer calls the deleter.
_EXPORTED: dict[int, tuple[_DLManagedTensor, Tensor]] = {}


def _forget(managed: Any) -> None:
    _EXPORTED.pop(ctypes.addressof(managed.contents), None)


def _forget_capsule(capsule: int) -> None:
    if _capsule_is_valid(capsule, b"dltensor"):  # never consumed: nobody else will free it
        _EXPORTED.pop(_capsule_pointer(capsule, b"dltensor"), None)


_DELETER = _Deleter(_forget)
_CAPSULE_DESTRUCTOR = _CapsuleDestructor(_forget_capsule)


def _managed_tensor(tensor: Tensor) -> _DLManagedTensor:
    ndim = tensor.ndim
    sizes = (ctypes.c_int64 * ndim)(*tensor.shape)
    strides = (ctypes.c_int64 * ndim)(*tensor.strides)
    managed = _DLManagedTensor()
    view = managed.dl_tensor
    view.data, view.ndim, view.byte_offset = tensor.ptr, ndim, 0
    view.device = _DLDevice(tensor.device.code, tensor.device.index)
    view.dtype = _DLDataType(tensor.dtype.code, tensor.dtype.bits, 1)
    view.shape = ctypes.cast(sizes, ctypes.POINTER(ctypes.c_int64))
    view.strides = ctypes.cast(strides, ctypes.POINTER(ctypes.c_int64))
    return managed


def _make_handle(tensor: Tensor) -> tuple[Any, _DLManagedTensor]:
    """A TVM-FFI tensor over the same memory. The structure has no deleter: `tensor` keeps it alive."""
    managed = _managed_tensor(tensor)
    capsule = _new_capsule(ctypes.addressof(managed), b"dltensor", None)
    return tvm_ffi().from_dlpack(capsule), managed
