"""The ladder of GPU architectures: what exists, what a build can contain, what a typical device offers."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from fd_core.api import dtype as dt
from fd_core.api.device import Device, DeviceInfo
from fd_core.api.dtype import DType

#: DLPack's kDLCUDA.
DEVICE_CODE = 2
#: bfloat16 arithmetic and its tensor cores begin here.
BF16_FROM = 80


@dataclass(frozen=True, slots=True)
class Arch:
    """One rung. `sm`: 10 * major + minor of the compute capability; `target`: what is built for it
    ("a": with instructions of its own). `example` and `memory` (GiB): a typical device."""

    sm: int
    target: str
    example: str
    memory: int

    @property
    def name(self) -> str:
        return f"sm_{self.sm}"


LADDER = (
    Arch(70, "70", "V100", 32),
    Arch(75, "75", "T4", 16),
    Arch(80, "80", "A100", 80),
    Arch(86, "86", "A10", 24),
    Arch(89, "89", "L40S", 48),
    Arch(90, "90a", "H100", 80),
    Arch(100, "100a", "B200", 192),
    Arch(120, "120a", "RTX PRO 6000", 96),
)


def rung(sm: int) -> Arch:
    """The highest rung that a device of capability `sm` can run: machine code is compatible upwards
    within a major version. ValueError below the ladder or between its majors."""
    fitting = [arch for arch in LADDER if arch.sm <= sm and arch.sm // 10 == sm // 10]
    if not fitting:
        raise ValueError(f"compute capability {sm / 10}: want one of {', '.join(a.name for a in LADDER)}")
    return fitting[-1]


def features(sm: int) -> frozenset[str]:
    """Words that kernel records and the engine ask for."""
    found = {"graph_capture", "asynchronous"}
    if sm >= BF16_FROM:
        found |= {"bf16", "cp_async"}
    if sm >= 89:
        found.add("fp8_mma")
    if sm // 10 == 9:
        found.add("wgmma")
    return frozenset(found)


def device_info(index: int, name: str, sm: int, memory: int, units: int, driver: str) -> DeviceInfo:
    """`memory`: bytes; `units`: multiprocessors."""
    return DeviceInfo(
        device=Device("cuda", index, DEVICE_CODE),
        name=name,
        arch=f"sm_{sm}",
        arch_rank=sm,
        memory=memory,
        driver=driver,
        units=units,
        features=features(sm),
        extra=MappingProxyType({"runs": rung(sm).name}),
    )


def simulated_devices() -> list[tuple[str, DeviceInfo]]:
    """A typical device of every rung."""
    return [("cuda", device_info(0, a.example, a.sm, a.memory << 30, 100, "simulated")) for a in LADDER]


def without_bf16(types: tuple[DType, ...]) -> tuple[DType, ...]:
    return tuple(t for t in types if t != dt.bfloat16)
