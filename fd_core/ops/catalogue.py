"""All ops, found by walking the family folders: a new op is a new file and nothing else."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from pathlib import Path

from fd_core.ops.schema import OpDef

_ROOT = Path(__file__).parent


def _families() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules([str(_ROOT)]) if m.ispkg)


@cache
def catalogue() -> dict[str, OpDef]:
    """Every op by name. The file `<family>/<name>.py` defines the op `<name>`."""
    found: dict[str, OpDef] = {}
    for family in _families():
        for module in pkgutil.iter_modules([str(_ROOT / family)]):
            if not module.name.startswith("_"):
                found[module.name] = load(family, module.name)
    return found


def load(family: str, name: str) -> OpDef:
    module = importlib.import_module(f"fd_core.ops.{family}.{name}")
    definition = getattr(module, name, None)
    if not isinstance(definition, OpDef):
        raise TypeError(f"{module.__name__}: wants an op called {name!r} in this file")
    return definition


def find(name: str) -> OpDef:
    """The op called `name`; KeyError names the nearest ones."""
    import difflib

    ops = catalogue()
    if name not in ops:
        near = ", ".join(difflib.get_close_matches(name, ops)) or "none"
        raise KeyError(f"no op is called {name!r}; nearest: {near}")
    return ops[name]
