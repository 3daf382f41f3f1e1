"""One GPU as a platform, over the driver alone: memory, copies, waiting, captured graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from fd_core.api.device import DeviceInfo, MemoryInfo, ProbeReport
from fd_core.api.platform import DeviceError, Graph, Platform
from fd_core.api.tensor import Storage, Tensor, TensorSpec, empty_host, from_numpy
from fd_cuda import driver, library
from fd_cuda.graph import CapturedGraph, capture
from fd_cuda.memory import Pool
from fd_cuda.probe import describe, probe
from fd_cuda.stream import current_stream
from fd_cuda.transfers import CudaTransfers


class CudaPlatform(Platform):
    """Kernels and copies run on the TVM-FFI environment's stream of the calling thread: the device's
    default stream, unless a guest framework or a capture has set another."""

    name: ClassVar[str] = "cuda"
    device_type: ClassVar[str] = "cuda"
    priority: ClassVar[int] = 100

    def __init__(self) -> None:
        self._pool = Pool()
        self._transfers = CudaTransfers(self)
        self._context = 0
        self._info: DeviceInfo

    @classmethod
    def probe(cls) -> ProbeReport:
        return probe()

    def open(self, index: int) -> DeviceInfo:
        """Takes the device's primary context, which frameworks in the process share."""
        driver.call("cuInit", 0)
        count = driver.device_count()
        if not 0 <= index < count:
            raise IndexError(f"platform 'cuda': want a device index below {count}, have {index}")
        info, verdict = describe(index)
        if info is None:
            raise DeviceError(str(verdict))
        self._context = driver.handle("cuDevicePrimaryCtxRetain", index)
        self._info = info
        self.enter()
        return info

    def enter(self) -> None:
        """Make the device's context current in this thread; every method that needs it does so."""
        driver.call("cuCtxSetCurrent", self._context)

    def empty(self, spec: TensorSpec) -> Tensor:
        self.enter()
        block = self._pool.take(spec.nbytes, self.stream())
        storage = Storage(block.ptr, block.size, self._info.device, owner=block, platform=self)
        return Tensor(block.ptr, spec.shape, spec.dtype, storage)

    def from_host(self, array: np.ndarray[Any, Any]) -> Tensor:
        source = from_numpy(np.ascontiguousarray(array))
        tensor = self.empty(source.spec)
        self.copy_(tensor, source)
        return tensor

    def to_host(self, tensor: Tensor) -> np.ndarray[Any, Any]:
        out = empty_host(tensor.spec)
        self.copy_(out, tensor)
        return out.numpy()

    def copy_(self, dst: Tensor, src: Tensor) -> None:
        """Complete on return where one side is host memory, in stream order between device tensors."""
        self.enter()
        if not tensor_bytes(dst, src):
            return
        if not dst.is_contiguous or not src.is_contiguous:
            self._copy_strided(dst, src)
        else:
            self._copy_bytes(dst, src)

    def _copy_bytes(self, dst: Tensor, src: Tensor) -> None:
        self._transfers.copy(dst, src)
        if dst.storage.on_host or src.storage.on_host:
            driver.call("cuStreamSynchronize", self.stream())

    def _copy_strided(self, dst: Tensor, src: Tensor) -> None:
        """Through contiguous memory of the same side where the other side is the host."""
        if src.storage.on_host:
            packed = self.from_host(np.ascontiguousarray(src.numpy()))
            self.copy_(dst, packed)
        elif dst.storage.on_host:
            dst.numpy()[...] = self.to_host(self._packed(src))
        else:
            library.function("copy_strided")(src, dst)

    def _packed(self, src: Tensor) -> Tensor:
        if src.is_contiguous:
            return src
        packed = self.empty(src.spec)
        library.function("copy_strided")(src, packed)
        return packed

    def memory(self) -> MemoryInfo:
        """What the pool keeps for reuse counts as free."""
        self.enter()
        free, total = driver.memory_info()
        free += self._pool.kept
        return MemoryInfo(total, total - free, free)

    def stream(self) -> int:
        return current_stream(self._info.device)

    def synchronize(self) -> None:
        self.enter()
        driver.call("cuCtxSynchronize")

    def transfers(self) -> CudaTransfers:
        self.enter()
        return self._transfers

    def capture(self, fn: Callable[[], None]) -> Graph | None:
        """What `fn` launches; it must neither allocate nor wait. DeviceError names what broke it."""
        self.enter()
        captured: CapturedGraph = capture(self._info.device, fn)
        return captured


def tensor_bytes(dst: Tensor, src: Tensor) -> int:
    """Bytes to copy; ValueError unless shapes and element types are equal."""
    if dst.shape != src.shape or dst.dtype != src.dtype:
        raise ValueError(f"copy_: want {dst.shape} {dst.dtype}, have {src.shape} {src.dtype}")
    return src.nbytes
