"""Reads `kernels.toml`, the single list of this plug-in's kernels."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True, slots=True)
class Entry:
    """One op's line: its sources under csrc/, whether it is compiled per ISA, its dtypes."""

    op: str
    sources: tuple[str, ...]
    tuned: bool
    dtypes: dict[str, tuple[str, ...]]
    numerics: str


@dataclass(frozen=True, slots=True)
class Table:
    """`ops` implement the catalogue; `private` are exports that only this plug-in calls."""

    common: tuple[str, ...]
    ops: dict[str, Entry]
    private: dict[str, Entry]


def _entry(op: str, row: dict[str, Any]) -> Entry:
    source = row.get("source", f"{op}.cc")
    sources = (source,) if isinstance(source, str) else tuple(source)
    dtypes = {name: tuple(types) for name, types in row.get("dtypes", {}).items()}
    return Entry(op, sources, row.get("tuned", False), dtypes, row.get("numerics", "tolerance"))


def read_table(path: Path) -> Table:
    with path.open("rb") as file:
        data = tomllib.load(file)
    ops, private = (
        {name: _entry(name, row) for name, row in data.get(part, {}).items()} for part in ("ops", "private")
    )
    return Table(tuple(data["support"]["common"]), ops, private)
