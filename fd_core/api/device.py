"""Facts about devices, as frozen data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from fd_core.api.dtype import DType
from fd_core.api.verdict import YES, Verdict


@dataclass(frozen=True, slots=True)
class Device:
    """A place for tensors. `code` is DLPack's device type, which the platform supplies."""

    type: str
    index: int
    code: int

    def __str__(self) -> str:
        return f"{self.type}:{self.index}"


#: Host memory (DLPack's kDLCPU); every process has it, whatever plug-ins are installed.
HOST = Device("cpu", 0, 1)


@dataclass(frozen=True, slots=True)
class MemoryInfo:
    """Bytes of one device."""

    total: int
    used: int
    free: int


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """What dispatch may know of an opened (or simulated) device.

    `arch` is the platform's own ladder name (`sm_90`, `avx512_vnni`); `arch_rank` orders the ladder.
    `features` are free words: `host_memory` (tensors are the host's memory), `asynchronous` (calls return
    before their work is done: the engine then prepares a step while the one before runs),
    `graph_capture`. `activation_dtype` is what the device prefers
    for activations whatever the weights are (None: the weights' own type).
    """

    device: Device
    name: str
    arch: str
    arch_rank: int
    memory: int
    driver: str = ""
    units: int = 1
    features: frozenset[str] = frozenset()
    activation_dtype: DType | None = None
    extra: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """Answer of `Platform.probe()`: devices found, or the reasons why there are none."""

    devices: tuple[DeviceInfo, ...] = ()
    verdict: Verdict = YES
