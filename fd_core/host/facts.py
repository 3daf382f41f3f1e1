"""A device and what is on offer for it, without freezing a dispatch table: for reports."""

from __future__ import annotations

from dataclasses import dataclass

from fd_core import environ
from fd_core.api.device import DeviceInfo
from fd_core.api.kernel import Kernel
from fd_core.host.plugins import PluginHost
from fd_core.host.reference import ReferencePlatform
from fd_core.host.select import choose


@dataclass(frozen=True, slots=True)
class Opened:
    """One device of platform `name` with the kernels on offer."""

    name: str
    info: DeviceInfo
    kernels: tuple[Kernel, ...]

    @property
    def oracle_is_native(self) -> bool:
        return self.name == ReferencePlatform.name


def open_device(host: PluginHost, platform: str | None = None, index: int = 0) -> Opened:
    """`platform` None: the one that a session would use. Raises PlatformError."""
    choice = choose(host.facts(), platform or environ.value("FD_PLATFORM"))
    info = host.platform_class(choice.name)().open(index)
    native = choice.name == ReferencePlatform.name
    return Opened(choice.name, info, () if native else tuple(host.kernels(info)))
