"""Operators as functions: `fd_core.ops.rms_norm(x, weight, 1e-6)` on the caller's own tensors.

The families are sub-packages (`fd_core.ops.norm`), reached by import alone: as attributes, names belong
to ops, which may share a family's name.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Ops(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        """Importing a family would hide the op of the same name behind it."""
        if not (isinstance(value, ModuleType) and hasattr(value, "__path__")):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Ops


def __getattr__(name: str) -> Any:
    """The callable op called `name`; AttributeError names the nearest ones."""
    if name.startswith("__"):
        raise AttributeError(name)
    from fd_core.ops.call import public_op

    return globals().setdefault(name, public_op(name))  # the next look-up finds it at once


def __dir__() -> list[str]:
    from fd_core.ops.catalogue import catalogue

    return sorted({*globals(), *catalogue()})
