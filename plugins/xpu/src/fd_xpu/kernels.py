"""Kernel records, read from the table that also holds what every argument must look like."""

from __future__ import annotations

import hashlib
import sys
from functools import cache
from pathlib import Path
from typing import Any

from fd_core.api.kernel import Kernel, Numerics, Require
from fd_xpu.signature import Argument, parse

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TABLE = Path(__file__).parent / "kernels.toml"
VERSION = "0.1.0"
#: Word in `DeviceInfo.features` of devices whose tensors are Paddle tensors.
PADDLE_TENSORS = "paddle_tensors"


@cache
def table() -> dict[str, dict[str, Any]]:
    """The rows by op."""
    rows: dict[str, dict[str, Any]] = tomllib.loads(TABLE.read_text(encoding="utf-8"))["ops"]
    return rows


@cache
def arguments(op: str) -> tuple[Argument, ...]:
    return tuple(parse(name, text) for name, text in table()[op]["args"].items())


def kernel(op: str, provider: str) -> Kernel:
    listed = {a.name: a.allowed() for a in arguments(op) if a.is_tensor and a.types != ("any",)}
    dtypes = {name: allowed for name, allowed in listed.items() if allowed}
    return Kernel(
        op=op,
        provider=provider,
        target=f"fd_xpu.ops.{op}:{op}",
        requires=Require(dtypes=dtypes, features=frozenset({PADDLE_TENSORS})),
        priority=100,
        numerics=Numerics(table()[op].get("numerics", "tolerance")),
        allocates=True,  # Paddle's operators make their results
        source=f"src/fd_xpu/ops/{op}.py",
    )


def kernels(provider: str = "fd-xpu") -> list[Kernel]:
    """Every op of the table; `provider`: the distribution that offers them."""
    return [kernel(op, provider) for op in table()]


def stamp() -> dict[str, Any]:
    """Facts of this build. The manifest holds the same: files of two releases do not agree."""
    digest = hashlib.sha256(TABLE.read_bytes()).hexdigest()[:16]
    return {"name": "fd-xpu", "version": VERSION, "paddle": "3.3", "ops": len(table()), "table": digest}
