"""A device and what is on offer for it, without freezing a dispatch table: for reports."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fd_core import environ
from fd_core.api.device import DeviceInfo
from fd_core.api.kernel import Kernel
from fd_core.api.platform import Platform
from fd_core.api.verdict import ReasonCode, Verdict
from fd_core.host.errors import PlatformError
from fd_core.host.plugins import PluginHost
from fd_core.host.reference import ReferencePlatform
from fd_core.host.register import FAILURES, describe
from fd_core.host.select import PlatformFact, choose
from fd_core.host.simulate import simulated


@dataclass(frozen=True, slots=True)
class Opened:
    """One device of platform `name` with the kernels on offer."""

    name: str
    info: DeviceInfo
    kernels: tuple[Kernel, ...]

    @property
    def oracle_is_native(self) -> bool:
        return self.name == ReferencePlatform.name


def open_device(
    host: PluginHost, platform: str | None = None, index: int = 0, sim: str | None = None
) -> Opened:
    """`platform` None: the one that a session would use. `sim`, else FD_SIM unless a platform is named:
    a device that is not there, as its plug-in describes it. Raises PlatformError."""
    sim = sim or (None if platform else environ.value("FD_SIM"))
    if sim:
        name, info = simulated(host, sim)
        return Opened(name, info, tuple(host.kernels(info)))
    choice = choose(host.facts(), platform or environ.value("FD_PLATFORM"))
    info = open_platform(host.platform_class(choice.name)(), index, host.facts())
    native = choice.name == ReferencePlatform.name
    return Opened(choice.name, info, () if native else tuple(host.kernels(info)))


def open_platform(platform: Platform, index: int, facts: Iterable[PlatformFact]) -> DeviceInfo:
    """The facts of device `index`, taken into use. PlatformError for whatever goes wrong in the plug-in."""
    cause: BaseException | None = None
    try:
        answer: Any = platform.open(index)
        if isinstance(answer, DeviceInfo):
            return answer
        have = f"index {index}: open() gave {answer!r}"
    except FAILURES as error:
        have, cause = f"index {index}: {describe(error)}", error
    devices = sum(fact.devices for fact in facts if fact.name == platform.name)
    subject, want = f"platform {platform.name!r}", f"one of {devices} devices by index"
    verdict = Verdict.no(ReasonCode.NO_DEVICE, subject, want, have, "fd doctor shows what was found")
    raise PlatformError(f"platform {platform.name!r} cannot be opened: {verdict}", verdict) from cause
