"""Captured graphs: kernel calls recorded once and launched together."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import byref, c_void_p

from fd_core.api.device import Device
from fd_cuda import driver
from fd_cuda.stream import current_stream, use_stream


class CapturedGraph:
    """`replay` launches it on the calling thread's stream."""

    __slots__ = ("_device", "_exec", "_launch")

    def __init__(self, device: Device, executable: int) -> None:
        self._device = device
        self._exec = executable
        self._launch = driver.library().cuGraphLaunch

    def replay(self) -> None:
        code = self._launch(self._exec, current_stream(self._device))
        if code:
            raise driver.CudaError("cuGraphLaunch", code)

    def __del__(self) -> None:
        driver.library().cuGraphExecDestroy(c_void_p(self._exec))


def capture(device: Device, fn: Callable[[], None]) -> CapturedGraph:
    """Record `fn` on a stream of its own. DeviceError if a call cannot be captured."""
    stream = driver.handle("cuStreamCreate", driver.NON_BLOCKING)
    try:
        graph = _record(device, stream, fn)
        try:
            executable = driver.handle("cuGraphInstantiateWithFlags", graph, 0)
        finally:
            driver.call("cuGraphDestroy", graph)
    finally:
        driver.call("cuStreamDestroy_v2", stream)
    return CapturedGraph(device, executable)


def _record(device: Device, stream: int, fn: Callable[[], None]) -> int:
    with use_stream(device, stream):
        driver.call("cuStreamBeginCapture_v2", stream, driver.CAPTURE_THREAD_LOCAL)
        try:
            fn()
        except BaseException:
            _abandon(stream)
            raise
        return driver.handle_of_capture(stream)


def _abandon(stream: int) -> None:
    """End a capture that failed; its own error says more than this call's."""
    graph = c_void_p()
    driver.library().cuStreamEndCapture(stream, byref(graph))
    if graph.value:
        driver.library().cuGraphDestroy(graph)
