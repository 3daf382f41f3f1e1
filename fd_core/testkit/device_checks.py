"""What the kit checks of a kernel's manners: devices, allocation, capture, and its own predicate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import numpy as np

from fd_core.api.device import HOST, Device
from fd_core.api.tensor import Storage, Tensor, from_numpy
from fd_core.host.dispatch import accepts, resolve
from fd_core.testkit.check import Values, arguments, run_oracle
from fd_core.testkit.trial import (
    REFUSALS,
    Array,
    CheckFailed,
    NotApplicable,
    Place,
    Trial,
    compare,
    compiled,
    fetch,
    or_refuse,
    tensors,
)

#: A type code of DLPack that belongs to signal processors: no platform under test has it.
ELSEWHERE = Device("elsewhere", 77, 16)


def wrong_devices(trial: Trial) -> None:
    """Each tensor in turn on a device that is not this one: refused before anything is written."""
    compiled(trial)
    values = arguments(trial.definition, trial.inputs())
    for position, name in enumerate(tensors(values)):
        placed = or_refuse(trial, values, _elsewhere(trial, position)) if values[name].size else None
        if placed is not None:
            raise CheckFailed(f"took {name} of device {ELSEWHERE}, whose memory it cannot know")


def _elsewhere(trial: Trial, position: int) -> Place:
    """Places every array on the device but the one at `position`."""
    seen = count()

    def place(array: Array) -> Tensor:
        if next(seen) != position:
            return trial.session.platform.from_host(array)
        host = from_numpy(array.copy())  # a real address: a kernel that follows it must not crash the kit
        storage = Storage(host.ptr, host.nbytes, ELSEWHERE, host, None)
        return Tensor(host.ptr, host.shape, host.dtype, storage)

    return place


def does_not_allocate(trial: Trial) -> None:
    """No device memory is taken during a call, unless the kernel's record says `allocates`."""
    kernel, platform = compiled(trial), trial.session.platform
    if kernel.allocates:
        raise NotApplicable("its record says that it allocates")
    placed = _placed(trial)
    call = getattr(trial.session.ops, trial.definition.name)
    call(*placed.values())  # what a kernel keeps from its first call on is not taken per call
    on_host = trial.session.device.device.code == HOST.code
    with _counted(platform) as taken:
        before = 0 if on_host else platform.memory().used
        call(*placed.values())
        platform.synchronize()
        after = 0 if on_host else platform.memory().used
    if taken or after > before:
        raise CheckFailed(f"took {taken or after - before} bytes; its record says allocates=False")


@contextmanager
def _counted(platform: Any) -> Iterator[list[int]]:
    """Bytes of every tensor that the platform hands out meanwhile."""
    taken: list[int] = []

    def watched(method: Callable[[Any], Tensor]) -> Callable[[Any], Tensor]:
        def call(what: Any) -> Tensor:
            tensor = method(what)
            taken.append(tensor.nbytes)
            return tensor

        return call

    for name in ("empty", "from_host"):
        setattr(platform, name, watched(getattr(platform, name)))
    try:
        yield taken
    finally:
        for name in ("empty", "from_host"):
            delattr(platform, name)


def replays(trial: Trial) -> None:
    """A captured call, replayed over other inputs in the same memory, gives their results."""
    kernel, platform = compiled(trial), trial.session.platform
    if kernel.allocates:
        raise NotApplicable("a kernel that allocates is not captured")
    placed = _placed(trial)
    call = getattr(trial.session.ops, trial.definition.name)
    graph = platform.capture(lambda: call(*placed.values()))
    if graph is None:
        raise NotApplicable("the platform captures nothing")
    other = trial.inputs(seed=1)
    fresh = arguments(trial.definition, other)
    if any(fresh[n].shape != placed[n].shape for n in tensors(fresh)):
        raise NotApplicable("the case has other shapes for another seed")
    for name in tensors(fresh):
        placed[name].copy_from(platform.from_host(fresh[name]))
    graph.replay()
    platform.synchronize()
    compare(trial, fetch(trial.session, placed), run_oracle(trial.definition, other))


def predicate_agrees(trial: Trial) -> None:
    """What dtypes and `supports` accept runs; what they refuse is refused by the kernel too, or right."""
    kernel = compiled(trial)
    placed = _placed(trial)
    call = tuple(placed.values())
    verdicts = [accepts(kernel, trial.definition.spec, call) for _ in range(2)]
    if verdicts[0] != verdicts[1]:
        raise CheckFailed("supports() answers the same call differently")
    try:
        resolve(kernel.target)(*call)
        trial.session.platform.synchronize()
    except REFUSALS as error:
        if verdicts[0].ok:
            raise CheckFailed(f"supports() accepts the call and the kernel refuses it: {error}") from error
        return
    if not verdicts[0].ok:
        compare(trial, fetch(trial.session, placed), run_oracle(trial.definition, trial.inputs()))


def _placed(trial: Trial) -> Values:
    values, put = arguments(trial.definition, trial.inputs()), trial.session.platform.from_host
    return {k: put(v) if isinstance(v, np.ndarray) else v for k, v in values.items()}
