"""Host memory behind the `Platform` interface: what every platform without memory of its own shares."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fd_core.api.device import MemoryInfo
from fd_core.api.platform import Platform
from fd_core.api.tensor import Tensor, TensorSpec, empty_host, from_numpy

if TYPE_CHECKING:
    import numpy as np


class HostPlatform(Platform):
    """Tensors are NumPy memory: nothing is copied to or from the host, nothing is asynchronous."""

    def empty(self, spec: TensorSpec) -> Tensor:
        return empty_host(spec)

    def from_host(self, array: np.ndarray[Any, Any]) -> Tensor:
        return from_numpy(array)

    def to_host(self, tensor: Tensor) -> np.ndarray[Any, Any]:
        return tensor.numpy()

    def copy_(self, dst: Tensor, src: Tensor) -> None:
        dst.copy_from(src)

    def memory(self) -> MemoryInfo:
        return host_memory()


def host_memory(root: Path = Path("/")) -> MemoryInfo:
    """Bytes this process may use: the machine's, narrowed by every control group above it."""
    info = _machine(root)
    for limit, used in _groups(root):
        free = max(0, limit - used)
        info = MemoryInfo(min(info.total, limit), info.used, min(info.free, free))
    return MemoryInfo(info.total, info.total - info.free, info.free)


def _machine(root: Path) -> MemoryInfo:
    try:
        rows = (line.split() for line in (root / "proc/meminfo").read_text().splitlines())
        kib = {row[0].rstrip(":"): int(row[1]) for row in rows if len(row) > 1}
    except OSError:
        return _sysconf()
    total, free = kib["MemTotal"] * 1024, kib.get("MemAvailable", kib["MemFree"]) * 1024
    return MemoryInfo(total, total - free, free)


def _sysconf() -> MemoryInfo:
    """Systems without /proc: total only, all of it taken as free."""
    import os

    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return MemoryInfo(total, 0, total)


def _groups(root: Path) -> list[tuple[int, int]]:
    """(limit, bytes in use that cannot be dropped) of each control group with a limit, v1 and v2."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            found += _walk(root / "sys/fs/cgroup", path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            found += _walk(root / "sys/fs/cgroup/memory", path, *names)
    return found


def _walk(base: Path, path: str, limit: str, usage: str, cache: str) -> list[tuple[int, int]]:
    """Every group from `path` up to `base`; in a container the path may exist only as `base`."""
    leaf = base / path.lstrip("/")
    folders = [leaf, *(p for p in leaf.parents if p == base or base in p.parents)]
    rows = (_group(folder, limit, usage, cache) for folder in dict.fromkeys([*folders, base]))
    return [row for row in rows if row is not None]


def _group(folder: Path, limit: str, usage: str, cache: str) -> tuple[int, int] | None:
    try:
        text = (folder / limit).read_text().strip()
        used = int((folder / usage).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    return None if text == "max" else (int(text), max(0, used - int(stat.get(cache, 0))))
