"""Host memory and the processor, as a platform."""

from __future__ import annotations

import mmap
import platform as machine
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from fd_core.api import dtype as dt
from fd_core.api.device import HOST, DeviceInfo, ProbeReport
from fd_core.api.host_platform import HostPlatform, host_memory
from fd_core.api.tensor import Storage, Tensor, TensorSpec, empty_host
from fd_cpu import library
from fd_cpu.ladder import Level, best_level, cpu_features, ladder

HUGE_PAGE = 2 << 20  # bytes


class CPUPlatform(HostPlatform):
    """One device, index 0: all processors this process may run on."""

    name: ClassVar[str] = "cpu"
    device_type: ClassVar[str] = "cpu"
    priority: ClassVar[int] = 0

    @classmethod
    def probe(cls) -> ProbeReport:
        verdict = library.verdict()
        return (
            ProbeReport((device_info(library.chosen()[0]),)) if verdict.ok else ProbeReport(verdict=verdict)
        )

    def open(self, index: int) -> DeviceInfo:
        if index != 0:
            raise IndexError(f"platform 'cpu': want device index 0, have {index}")
        return device_info(library.chosen()[0])

    def empty(self, spec: TensorSpec) -> Tensor:
        """64-byte aligned; from 2 MiB on in pages of its own, huge ones where the system offers them."""
        if spec.nbytes < HUGE_PAGE:
            return empty_host(spec)
        refuse_overcommit(spec)
        return huge_tensor(spec)


def refuse_overcommit(spec: TensorSpec) -> None:
    """Linux grants pages that it does not have and ends the process later: ask first."""
    free = host_memory().free
    if spec.nbytes > free:
        text = f"want {spec.nbytes} bytes for {list(spec.shape)} {spec.dtype}, have {free} free"
        raise MemoryError(f"platform 'cpu': {text}; use a smaller model, batch or cache")


def huge_tensor(spec: TensorSpec) -> Tensor:
    # Private: huge pages of shared memory are another, mostly closed, setting of the system.
    pages = mmap.mmap(-1, spec.nbytes + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    raw = np.frombuffer(pages, np.uint8)
    start = int(raw.__array_interface__["data"][0])
    skip = -start % HUGE_PAGE
    advise(pages, skip, spec.nbytes)
    storage = Storage(start + skip, spec.nbytes, HOST, owner=raw)
    return Tensor(start + skip, spec.shape, spec.dtype, storage)


def advise(pages: mmap.mmap, start: int, length: int) -> None:
    """Ask for huge pages; kernels built without them refuse, which costs speed alone."""
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is None:
        return
    try:
        pages.madvise(advice, start, length)
    except OSError:
        return


def device_info(level: str) -> DeviceInfo:
    """`level`: the library in use; one that a developer names counts as this machine's best."""
    rungs = {one.name: one.rank for one in ladder()}
    arch = level if level in rungs else best_level().name
    return DeviceInfo(
        device=HOST,
        name=processor_name(),
        arch=arch,
        arch_rank=rungs[arch],
        memory=host_memory().total,
        units=library.thread_count(),
        features=frozenset({"host_memory"}),
        activation_dtype=dt.float32,
        extra=MappingProxyType({"cpu_features": " ".join(sorted(known_features()))}),
    )


def simulated_devices() -> list[tuple[str, DeviceInfo]]:
    """A processor of every level of every family."""
    rows = [(family, level) for family in ("x86_64", "aarch64") for level in ladder(family)]
    return [(CPUPlatform.name, typical_device(family, level)) for family, level in rows]


def typical_device(family: str, level: Level) -> DeviceInfo:
    return DeviceInfo(
        device=HOST,
        name=f"{family} processor",
        arch=level.name,
        arch_rank=level.rank,
        memory=16 << 30,
        features=frozenset({"host_memory"}),
        activation_dtype=dt.float32,
        extra=MappingProxyType({"cpu_features": " ".join(level.needs)}),
    )


def known_features() -> set[str]:
    """Those of this processor that some level of the ladder asks for, and the matrix extensions."""
    asked = {name for level in ladder() for name in level.needs}
    return {name for name in cpu_features() if name in asked or name.startswith(("amx", "avx512"))}


def processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    try:
        rows: Any = (line.partition(":") for line in cpuinfo.read_text().splitlines())
    except OSError:
        rows = ()
    names = [value.strip() for key, _, value in rows if key.strip() == "model name"]
    return names[0] if names else machine.machine()
