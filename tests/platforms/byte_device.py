"""A device whose memory is a byte array that the host cannot address: the least a plug-in can bring."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from fd_core.api.device import Device, DeviceInfo, MemoryInfo, ProbeReport
from fd_core.api.platform import Platform
from fd_core.api.tensor import Storage, Tensor, TensorSpec

DEVICE = Device("bytes", 0, 12)  # DLPack's kDLExtDev
CAPACITY = 1 << 20


class ByteDevice(Platform):
    """Addresses are offsets into `_bytes`; host code that follows one would crash at once."""

    name: ClassVar[str] = "bytes"
    device_type: ClassVar[str] = "bytes"

    def __init__(self) -> None:
        self._bytes = np.zeros(CAPACITY, np.uint8)
        self._used = 64  # offset 0 stays free, so that it never looks like a null pointer
        self.copies = 0

    @classmethod
    def probe(cls) -> ProbeReport:
        return ProbeReport((cls().open(0),))

    def open(self, index: int) -> DeviceInfo:
        return DeviceInfo(DEVICE, "byte array", "bytes_1", 1, CAPACITY)

    def empty(self, spec: TensorSpec) -> Tensor:
        start = self._used
        self._used += (spec.nbytes + 63) & ~63
        if self._used > CAPACITY:
            raise MemoryError(f"platform 'bytes': want {spec.nbytes} bytes, have {CAPACITY - start} free")
        return Tensor(start, spec.shape, spec.dtype, Storage(start, spec.nbytes, DEVICE, None, self))

    def from_host(self, array: np.ndarray[Any, Any]) -> Tensor:
        from fd_core.api.tensor import from_numpy

        source = from_numpy(np.ascontiguousarray(array))
        tensor = self.empty(source.spec)
        self.copy_(tensor, source)
        return tensor

    def to_host(self, tensor: Tensor) -> np.ndarray[Any, Any]:
        self.copies += 1
        return self._view(tensor).copy()

    def copy_(self, dst: Tensor, src: Tensor) -> None:
        self.copies += 1
        self._view(dst)[...] = self._view(src)

    def memory(self) -> MemoryInfo:
        return MemoryInfo(CAPACITY, self._used, CAPACITY - self._used)

    def _view(self, tensor: Tensor) -> np.ndarray[Any, Any]:
        if tensor.storage.on_host:
            return tensor.numpy()
        flat = self._bytes[tensor.ptr :].view(np.uint8)
        usable = flat[: flat.size // tensor.dtype.itemsize * tensor.dtype.itemsize]
        strides = tuple(stride * tensor.dtype.itemsize for stride in tensor.strides)
        typed = usable.view(tensor.dtype.numpy())
        return np.lib.stride_tricks.as_strided(typed, tensor.shape, strides)
