"""Copies that queue behind the kernels, and events that say when they are done."""

from __future__ import annotations

from fd_core.api.device import HOST
from fd_core.api.platform import Platform, Transfers
from fd_core.api.tensor import Storage, Tensor, TensorSpec
from fd_cuda import driver
from fd_cuda.memory import Pinned


class CudaEvent:
    """A point in the stream that was current when `record` was called."""

    __slots__ = ("_event", "_platform", "_recorded")

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._event = driver.handle("cuEventCreate", driver.DISABLE_TIMING)
        self._recorded = False

    def record(self) -> None:
        driver.call("cuEventRecord", self._event, self._platform.stream())
        self._recorded = True

    def wait(self) -> None:
        if self._recorded:
            driver.call("cuEventSynchronize", self._event)

    def __del__(self) -> None:
        driver.library().cuEventDestroy_v2(self._event)


class CudaTransfers(Transfers):
    """Page-locked host memory and asynchronous copies on the calling thread's stream."""

    def pinned(self, spec: TensorSpec) -> Tensor:
        memory = Pinned(spec.nbytes)
        return Tensor(
            memory.ptr, spec.shape, spec.dtype, Storage(memory.ptr, spec.nbytes, HOST, owner=memory)
        )

    def copy(self, dst: Tensor, src: Tensor) -> None:
        if src.storage.on_host:
            name = "cuMemcpyHtoDAsync_v2"
        else:
            name = "cuMemcpyDtoHAsync_v2" if dst.storage.on_host else "cuMemcpyDtoDAsync_v2"
        if src.nbytes:
            driver.call(name, dst.ptr, src.ptr, src.nbytes, self.platform.stream())

    def event(self) -> CudaEvent:
        return CudaEvent(self.platform)
