"""The compiled library: exactly one shared object is loaded, for the best ISA level built.

`FD_CPU_ISA` asks for a level by name; `FD_CPU_LIBRARY` names a file (developers). Kernels are the
module's attributes: `library.rms_norm` is the exported function of that name.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

from fd_core.api.verdict import ReasonCode, Verdict
from fd_cpu.ladder import Level, cpu_features, ladder

LIBRARIES = Path(__file__).parent / "lib"


def library_path(level: Level) -> Path:
    return LIBRARIES / f"libfd_cpu_{level.name}.so"


def candidates() -> list[tuple[Level, Verdict]]:
    """Every level with its verdict: CPU features, then whether this build contains it."""
    return [(level, _verdict(level)) for level in ladder()]


def _verdict(level: Level) -> Verdict:
    verdict = level.verdict(cpu_features())
    wanted = os.environ.get("FD_CPU_ISA", level.name)
    if wanted != level.name:
        verdict &= Verdict.no(ReasonCode.DISABLED, f"isa {level.name}", f"FD_CPU_ISA={wanted}", level.name)
    path = library_path(level)
    if not path.exists():
        fix = "reinstall fd-cpu with a C++ compiler present"
        verdict &= Verdict.no(ReasonCode.NOT_BUILT, f"isa {level.name}", path, "no file", fix)
    return verdict


@cache
def chosen() -> tuple[str, Path]:
    """(level name, file) to load; raises RuntimeError with every level's reason."""
    override = os.environ.get("FD_CPU_LIBRARY")
    if override:
        return "dev", Path(override)
    for level, verdict in candidates():
        if verdict.ok:
            return level.name, library_path(level)
    reasons = "; ".join(str(verdict) for _, verdict in candidates())
    raise RuntimeError(f"fd-cpu: no usable kernel library: {reasons}")


@cache
def module() -> Any:
    import tvm_ffi

    lib = tvm_ffi.load_module(str(chosen()[1]))
    lib.get_function("set_threads")(thread_count())
    return lib


def thread_count() -> int:
    """`FD_CPU_THREADS`, else the CPUs this process may run on."""
    given = os.environ.get("FD_CPU_THREADS")
    if given:
        return max(1, int(given))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return module().get_function(name)
