"""The compiled library: exactly one shared object is loaded, for the best ISA level built.

`FD_CPU_ISA` asks for a level by name; `FD_CPU_LIBRARY` names a file (developers). Kernels are the
module's attributes: `library.rms_norm` is the exported function of that name.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

from fd_core.api.ffi import tvm_ffi
from fd_core.api.tensor import from_numpy
from fd_core.api.verdict import ReasonCode, Verdict
from fd_core.environ import Variable, registry
from fd_cpu.ladder import Level, cpu_features, ladder
from fd_cpu.variables import VARIABLES

LIBRARIES = Path(__file__).parent / "lib"
registry.declare(Variable(**row, owner="fd-cpu") for row in VARIABLES)


def library_path(level: Level) -> Path:
    return LIBRARIES / f"libfd_cpu_{level.name}.so"


def candidates() -> list[tuple[Level, Verdict]]:
    """Every level with its verdict: CPU features, then whether this build contains it."""
    return [(level, _verdict(level)) for level in ladder()]


def _verdict(level: Level) -> Verdict:
    verdict = level.verdict(cpu_features())
    wanted = registry.value("FD_CPU_ISA") or level.name
    if wanted != level.name:
        fix = "unset FD_CPU_ISA"
        verdict &= Verdict.no(
            ReasonCode.POLICY, f"isa {level.name}", f"FD_CPU_ISA={wanted}", level.name, fix
        )
    path = library_path(level)
    if not path.exists():
        fix = "reinstall fd-cpu with a C++ compiler present"
        verdict &= Verdict.no(ReasonCode.NOT_BUILT, f"isa {level.name}", path.name, "no such file", fix)
    return verdict


def override() -> Path | None:
    """The developer's library, if one is named."""
    named = registry.value("FD_CPU_LIBRARY")
    return Path(named) if named else None


def verdict() -> Verdict:
    """Whether some library can be loaded; if not, every level's reasons."""
    named = override()
    if named is not None:
        fix = "build it with dev_build.py, or unset FD_CPU_LIBRARY"
        missing = Verdict.no(ReasonCode.NOT_BUILT, "FD_CPU_LIBRARY", named, "no such file", fix)
        return Verdict() if named.exists() else missing
    rows = [verdict for _, verdict in candidates()]
    return Verdict() if any(row.ok for row in rows) else Verdict.all(rows)


@cache
def chosen() -> tuple[str, Path]:
    """(level name, file) to load; raises RuntimeError with every level's reasons."""
    problem = verdict()
    if not problem.ok:
        raise RuntimeError(f"fd-cpu: no usable kernel library: {problem}")
    named = override()
    if named is not None:
        return "dev", named
    return next((level.name, library_path(level)) for level, row in candidates() if row.ok)


def stamp() -> dict[str, Any] | None:
    """What the loaded library says of its build; None for a developer's library."""
    if override() is not None:
        return None
    text = module().get_function("fd_stamp")()
    facts: dict[str, Any] = json.loads(text)
    return facts


@cache
def module() -> Any:
    lib = tvm_ffi().load_module(str(chosen()[1]))
    lib.get_function("set_threads")(thread_count())
    pin_threads(lib, registry.value("FD_CPU_AFFINITY"))
    return lib


def pin_threads(lib: Any, processors: str | None) -> None:
    """Thread i of the pool runs on processor i of the list; thread 0 is the caller's and is not moved."""
    import numpy as np

    if processors:
        numbers = parse_processors(processors, os.sched_getaffinity(0))
        lib.get_function("set_affinity")(from_numpy(np.array(numbers, np.int32)))


def parse_processors(text: str, allowed: Collection[int]) -> list[int]:
    """Numbers of a list such as 0-3,8; ValueError for what cannot be read or may not be used."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part.strip())
        if match is None:
            raise ValueError(f"FD_CPU_AFFINITY: want processors such as 0-3,8, have {part!r} in {text!r}")
        found.extend(range(int(match[1]), int(match[2] or match[1]) + 1))
    refused = sorted(set(found) - set(allowed))
    if refused or not found:
        have = f"{refused or 'none'} in {text!r}"
        raise ValueError(f"FD_CPU_AFFINITY: want processors of {sorted(allowed)}, have {have}")
    return found


def thread_count() -> int:
    """`FD_CPU_THREADS`, else the processors this process may run on."""
    given: int | None = registry.value("FD_CPU_THREADS")
    if given is not None:
        return given
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return module().get_function(name)
