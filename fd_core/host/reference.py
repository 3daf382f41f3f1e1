"""The oracle platform: host memory and NumPy, so that fd-core alone runs everything, slowly."""

from __future__ import annotations

from typing import ClassVar

from fd_core.api import dtype as dt
from fd_core.api.device import HOST, DeviceInfo, ProbeReport
from fd_core.api.host_platform import HostPlatform


class ReferencePlatform(HostPlatform):
    """Always there and always last: used when no plug-in brings a device, or when asked for by name."""

    name: ClassVar[str] = "reference"
    device_type: ClassVar[str] = "cpu"
    priority: ClassVar[int] = -1000

    @classmethod
    def probe(cls) -> ProbeReport:
        return ProbeReport((cls._info(),))

    def open(self, index: int) -> DeviceInfo:
        if index != 0:
            raise IndexError(f"platform 'reference': want device index 0, have {index}")
        return self._info()

    @classmethod
    def _info(cls) -> DeviceInfo:
        return DeviceInfo(
            device=HOST,
            name="NumPy oracles on the host",
            arch="numpy",
            arch_rank=0,
            memory=cls().memory().total,
            features=frozenset({"host_memory"}),
            activation_dtype=dt.float32,
        )
