"""The compiled kernels. `library.<rung>.<op>` as "sm_90.rms_norm" is the function that op exports.

One shared object holds every architecture the build was asked for (its stamp lists them).
`FD_CUDA_LIBRARY` names other files (developers). Loading needs no driver and no device.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

from fd_core.api.ffi import tvm_ffi
from fd_core.api.verdict import YES, NotBuiltError, ReasonCode, Verdict
from fd_core.environ import Variable, registry
from fd_cuda.arch import LADDER
from fd_cuda.cublas import library_files
from fd_cuda.table import read_table, table_file
from fd_cuda.variables import VARIABLES

FILE = Path(__file__).parent / "lib" / "libfd_cuda.so"
registry.declare(Variable(**row, owner="fd-cuda") for row in VARIABLES)


def overrides() -> list[Path]:
    """The developer's libraries, if any are named."""
    named = registry.value("FD_CUDA_LIBRARY")
    return [Path(name) for name in named.split(os.pathsep)] if named else []


def verdict() -> Verdict:
    """Whether there is a library to load."""
    missing = [path for path in overrides() or [FILE] if not path.exists()]
    if not missing:
        return YES
    if overrides():
        fix = "build it with dev_build.py, or unset FD_CUDA_LIBRARY"
        return Verdict.no(ReasonCode.NOT_BUILT, "FD_CUDA_LIBRARY", missing[0], "no such file", fix)
    have, fix = "a build without kernels", "install fd-cuda again, without FD_CUDA_ARCHS=none"
    return Verdict.no(ReasonCode.NOT_BUILT, "fd-cuda", f"kernels in lib/{FILE.name}", have, fix)


@cache
def modules() -> tuple[Any, ...]:
    """The loaded libraries; RuntimeError if there is none."""
    problem = verdict()
    if not problem.ok:
        raise RuntimeError(str(problem))
    loaded = tuple(tvm_ffi().load_module(str(path)) for path in overrides() or [FILE])
    for module in loaded:
        if module.implements_function("linear_library_files"):
            module.get_function("linear_library_files")(":".join(map(str, library_files())))
    return loaded


@cache
def stamp() -> dict[str, Any] | None:
    """What the installed library says of its build; None without one, or for a developer's library."""
    if overrides() or not FILE.exists():
        return None
    facts: dict[str, Any] = json.loads(modules()[0].get_function("fd_stamp")())
    return facts


def targets() -> tuple[str, ...]:
    """Build targets that the library contains, such as 80 and 90a; a developer's is taken to have all."""
    if overrides():
        return tuple(arch.target for arch in LADDER)
    facts = stamp()
    return () if facts is None else tuple(facts["targets"])


def function(name: str) -> Any:
    """An export by name; AttributeError if no loaded library has it."""
    for module in modules():
        if module.implements_function(name):
            return module.get_function(name)
    raise AttributeError(f"{name}: no such export in {', '.join(map(str, overrides() or [FILE]))}")


def contains(rung: str, op: str) -> Verdict:
    """Whether this build holds machine code of `op` for a rung such as sm_90."""
    if not overrides() and not FILE.exists():
        return verdict()
    target = next(arch.target for arch in LADDER if arch.name == rung)
    table = read_table(table_file())
    entry = table.ops.get(op) or table.private[op]
    if target in targets() and entry.runs_on(target):
        return YES
    fix = f"build fd-cuda with FD_CUDA_ARCHS={target}"
    return Verdict.no(ReasonCode.NOT_BUILT, f"{op} for {rung}", target, " ".join(targets()) or "none", fix)


def __getattr__(name: str) -> Any:
    """`sm_90.rms_norm` -> the export; NotBuiltError where the build lacks it."""
    rung, dot, op = name.partition(".")
    if not dot or name.startswith("__"):
        raise AttributeError(name)
    held = contains(rung, op)
    if not held.ok:
        raise NotBuiltError(held)
    return function(op)
