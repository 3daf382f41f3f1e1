"""A device that runs and fails on demand: memory of its own, a stream, the oracles as its kernels.

Offered as platform `simulated` while FD_SIM or FD_SIM_FAULT is set. Calls and queued copies run as late
as they may: when somebody waits, and then only as far as he waits for. So host memory that is changed
before its copy, or read before an event, shows in the results. Recorded calls run at each replay. Its
kernels check data as the oracles do, not types.
"""

from __future__ import annotations

import itertools
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from fd_core import environ
from fd_core.api.device import HOST, Device, DeviceInfo, MemoryInfo, ProbeReport
from fd_core.api.dtype import FLOATS, uint8
from fd_core.api.hookspecs import hookimpl
from fd_core.api.kernel import Kernel, ParamKind
from fd_core.api.platform import DeviceError, Platform, Transfers
from fd_core.api.tensor import Storage, Tensor, TensorSpec, empty_host, from_numpy
from fd_core.ops.catalogue import catalogue
from fd_core.ops.schema import OpDef
from fd_core.testkit.faults import Faults, parse

NAME = "simulated"
DEVICE = Device(NAME, 0, 12)  # DLPack's kDLExtDev
FEATURES = frozenset({"asynchronous", "graph_capture"})
FACTS = DeviceInfo(DEVICE, "a device that is not there", "queue", 0, 8 << 30, features=FEATURES)

#: Device memory that a recorded step takes.
GRAPH = TensorSpec((1 << 16,), uint8)

Work = Callable[[], None]


class SimulatedPlatform(Platform):
    """One queue. `faults` None: FD_SIM_FAULT."""

    name: ClassVar[str] = NAME
    device_type: ClassVar[str] = NAME
    priority: ClassVar[int] = -2000

    def __init__(self, faults: Faults | None = None) -> None:
        self._faults = parse(environ.value("FD_SIM_FAULT")) if faults is None else faults
        self._used = 0
        self._allocations = itertools.count(1)
        self._calls = itertools.count(1)
        self._queue: deque[Work] = deque()
        self._late: deque[Work] = deque()  # of the stream that nobody waits for
        self._queued = 0  # calls and copies, since the beginning
        self._recording: list[tuple[str, Work]] | None = None
        self._error = ""
        self.capacity = FACTS.memory

    @classmethod
    def probe(cls) -> ProbeReport:
        return ProbeReport((FACTS,))

    def open(self, index: int) -> DeviceInfo:
        if index != 0:
            raise IndexError(f"platform {NAME!r}: want device index 0, have {index}")
        return FACTS

    def empty(self, spec: TensorSpec) -> Tensor:
        free = self.capacity - self._used
        if self._faults.due("oom", next(self._allocations)):
            free = 0
        if spec.nbytes > free:
            fix = "use a smaller model, batch or cache"
            raise MemoryError(f"platform {NAME!r}: want {spec.nbytes} bytes, have {free} free; fix: {fix}")
        memory = np.zeros(spec.nbytes + 1, np.uint8)
        self._used += spec.nbytes
        weakref.finalize(memory, self._free, spec.nbytes)
        start = memory.ctypes.data
        return Tensor(start, spec.shape, spec.dtype, Storage(start, spec.nbytes, DEVICE, memory, self))

    def _free(self, size: int) -> None:
        self._used -= size

    def from_host(self, array: np.ndarray[Any, Any]) -> Tensor:
        source = from_numpy(np.ascontiguousarray(array).reshape(array.shape))
        tensor = self.empty(source.spec)
        self.copy_(tensor, source)
        return tensor

    def to_host(self, tensor: Tensor) -> np.ndarray[Any, Any]:
        self._wait()
        return np.array(on_host(tensor).numpy())

    def copy_(self, dst: Tensor, src: Tensor) -> None:
        self._wait()
        on_host(dst).numpy()[...] = on_host(src).numpy()

    def memory(self) -> MemoryInfo:
        return MemoryInfo(self.capacity, self._used, self.capacity - self._used)

    def synchronize(self) -> None:
        self._wait()

    def transfers(self) -> Transfers:
        return QueuedTransfers(self)

    def capture(self, fn: Callable[[], None]) -> SimulatedGraph:
        recorded: list[tuple[str, Work]] = []
        self._recording = recorded
        try:
            fn()
        finally:
            self._recording = None
        return SimulatedGraph(self, recorded)

    # -- the stream --------------------------------------------------------------------------------

    def submit(self, op: str, work: Work) -> None:
        """Queue one kernel. DeviceError if the device has gone."""
        if self._recording is not None:
            self._recording.append((op, work))
            return
        self._refuse_lost()
        self._run(self._late, 0)  # done by now, by luck
        number = next(self._calls)
        if self._faults.due("lost", number):
            self._queue.clear()
            self._error = f"no device since kernel call {number} ({op})"
            self._refuse_lost()
        if self._faults.due("async", number):
            self._push(lambda: self._fail(f"kernel call {number} ({op}) wrote outside its memory"))
        if self._faults.hits("stream", op):
            self._late.append(work)
        else:
            self._push(work)

    def enqueue_copy(self, dst: Tensor, src: Tensor) -> None:
        """Queue a copy, which reads and writes when its turn comes."""
        to, source = on_host(dst).numpy(), on_host(src).numpy()
        self._refuse_lost()
        self._push(lambda: np.copyto(to, source))

    def end_of_queue(self) -> int:
        """A place in the stream, for `wait_until`."""
        return self._queued

    def wait_until(self, place: int) -> None:
        """Run what was queued before `place`, and no more."""
        self._refuse_lost()
        self._run(self._queue, self._queued - place)
        self._refuse_lost()

    def _push(self, work: Work) -> None:
        self._queue.append(work)
        self._queued += 1

    def _wait(self) -> None:
        if self._recording is not None:
            raise DeviceError(f"platform {NAME!r}: want no wait while calls are recorded, have one")
        self.wait_until(self._queued)

    @staticmethod
    def _run(queue: deque[Work], leave: int) -> None:
        while len(queue) > leave:
            queue.popleft()()

    def _fail(self, what: str) -> None:
        self._error = what

    def _refuse_lost(self) -> None:
        if self._error:
            fix = "start the program again; unset FD_SIM_FAULT to make it work"
            text = f"platform {NAME!r}: want a working device, have {self._error}; fix: {fix}"
            raise DeviceError(text)


class SimulatedGraph:
    """Recorded calls: the same addresses, whatever lies there at each replay."""

    def __init__(self, platform: SimulatedPlatform, calls: list[tuple[str, Work]]) -> None:
        self._platform = platform
        self._calls = calls
        self._memory = platform.empty(GRAPH)

    def replay(self) -> None:
        for op, work in self._calls:
            self._platform.submit(op, work)


class QueuedTransfers(Transfers):
    """Pinned memory starts full of garbage, so that reading too early shows."""

    platform: SimulatedPlatform

    def pinned(self, spec: TensorSpec) -> Tensor:
        made = empty_host(spec)
        made.numpy().view(np.uint8)[...] = 0x5A
        return made

    def copy(self, dst: Tensor, src: Tensor) -> None:
        self.platform.enqueue_copy(dst, src)

    def event(self) -> SimulatedEvent:
        return SimulatedEvent(self.platform)


class SimulatedEvent:
    def __init__(self, platform: SimulatedPlatform) -> None:
        self._platform = platform
        self._place = 0

    def record(self) -> None:
        self._place = self._platform.end_of_queue()

    def wait(self) -> None:
        self._platform.wait_until(self._place)


def on_host(tensor: Tensor) -> Tensor:
    """The same memory as the host sees it."""
    if tensor.device not in (HOST, DEVICE):
        raise ValueError(f"want a tensor on {DEVICE} or {HOST}, have one on {tensor.device}")
    storage = Storage(tensor.storage.ptr, tensor.storage.nbytes, HOST, tensor.storage)
    return Tensor(tensor.ptr, tensor.shape, tensor.dtype, storage, tensor.strides)


def kernel(definition: OpDef, run: Callable[..., None] | None = None) -> Kernel:
    """The oracle, queued, with the op's faults; or `run`, which takes the arguments in host memory."""
    flips = itertools.count()
    run = run or (
        lambda *args: definition.oracle(*(a.numpy() if isinstance(a, Tensor) else a for a in args))
    )

    def call(*args: Any) -> None:
        tensors = [a for a in args if isinstance(a, Tensor)]
        views = [on_host(a) if isinstance(a, Tensor) else a for a in args]
        platform: Any = next(t.storage.platform for t in tensors if t.storage.platform is not None)

        def work() -> None:
            run(*views)
            _spoil(platform._faults, definition, views, next(flips))

        platform.submit(definition.name, work)

    return Kernel(definition.name, NAME, call, priority=100)


def _spoil(faults: Faults, definition: OpDef, views: list[Any], count: int) -> None:
    for param, view in zip(definition.spec.params, views, strict=True):
        written = param.kind in (ParamKind.OUT, ParamKind.INOUT) and isinstance(view, Tensor) and view.numel
        if not written or view.dtype not in FLOATS:
            continue
        array = view.numpy()
        if faults.hits("nan", definition.name):
            array.reshape(-1)[:1] = np.nan
        if faults.hits("random", definition.name) and count % 2:
            array *= np.asarray(1 + 2**-6, array.dtype)


@hookimpl
def fd_platforms() -> list[type[Platform]]:
    return [SimulatedPlatform]


@hookimpl
def fd_kernels(device: DeviceInfo) -> list[Kernel]:
    return [kernel(one) for one in catalogue().values()] if device.device.type == NAME else []


@hookimpl
def fd_simulated_devices() -> list[tuple[str, DeviceInfo]]:
    return [(NAME, FACTS)]
