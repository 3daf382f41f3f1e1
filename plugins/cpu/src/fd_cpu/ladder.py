"""The ISA ladder (`isa.toml`): which level this machine reaches, and why not a higher one."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fd_core.api.verdict import ReasonCode, Verdict

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True, slots=True)
class Level:
    name: str
    rank: int
    flags: tuple[str, ...]
    needs: tuple[str, ...]

    def verdict(self, present: Iterable[str]) -> Verdict:
        """Can a processor with these features run this level?"""
        missing = sorted(set(self.needs) - set(present))
        if not missing:
            return Verdict()
        want, fix = "CPU features " + " ".join(missing), "unset FD_CPU_ISA: a level that fits is chosen"
        return Verdict.no(ReasonCode.ARCH, f"isa {self.name}", want, "none of them", fix)


def _ladder_file() -> Path:
    here = Path(__file__).parent
    installed = here / "isa.toml"
    return installed if installed.exists() else here.parents[1] / "isa.toml"


@cache
def _rows() -> dict[str, Any]:
    with _ladder_file().open("rb") as file:
        rows: dict[str, Any] = tomllib.load(file)
    return rows


def common_flags() -> tuple[str, ...]:
    """Compiler flags of every file."""
    return tuple(_rows()["common"]["flags"])


def family(machine: str) -> str:
    """The ladder's name of a processor family, from what platform.machine() says."""
    return {"arm64": "aarch64", "AMD64": "x86_64"}.get(machine, machine)


@cache
def ladder(machine: str = platform.machine()) -> tuple[Level, ...]:
    """Levels of this processor family, highest first."""
    levels = _rows().get(family(machine), {})
    built = [Level(n, r["rank"], tuple(r["flags"]), tuple(r["needs"])) for n, r in levels.items()]
    return tuple(sorted(built, key=lambda level: -level.rank))


@cache
def cpu_features() -> frozenset[str]:
    """Feature names as /proc/cpuinfo spells them; the kernel hides what it does not save."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    for line in text.splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()


def best_level(present: Iterable[str] | None = None) -> Level:
    """The highest level whose needs are met."""
    features = cpu_features() if present is None else frozenset(present)
    return next(level for level in ladder() if level.verdict(features).ok)


def level_flags(name: str) -> tuple[str, ...]:
    return next(level.flags for level in ladder() if level.name == name)
