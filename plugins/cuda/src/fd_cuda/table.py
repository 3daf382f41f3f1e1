"""Reads `kernels.toml`, the single list of this plug-in's kernels."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True, slots=True)
class Entry:
    """One export: its sources under csrc/, where it runs, its dtypes (names).

    `first`: lowest architecture; `only`: exact build targets, empty for all from `first` on.
    """

    op: str
    sources: tuple[str, ...]
    first: int
    only: tuple[str, ...]
    dtypes: dict[str, tuple[str, ...]]
    numerics: str

    def runs_on(self, target: str) -> bool:
        """Whether its source can be compiled for a build target such as 80 or 90a."""
        return target in self.only if self.only else int(target.rstrip("a")) >= self.first


@dataclass(frozen=True, slots=True)
class Table:
    """`ops` implement the catalogue; `private` are exports that only this plug-in calls; `common` are
    sources that every library needs."""

    common: tuple[str, ...]
    ops: dict[str, Entry]
    private: dict[str, Entry]


def _entry(op: str, row: dict[str, Any]) -> Entry:
    source = row.get("source", f"{op}.cu")
    return Entry(
        op=op,
        sources=(source,) if isinstance(source, str) else tuple(source),
        first=row.get("from", 70),
        only=tuple(row.get("only", ())),
        dtypes={name: tuple(types) for name, types in row.get("dtypes", {}).items()},
        numerics=row.get("numerics", "tolerance"),
    )


def table_file() -> Path:
    here = Path(__file__).parent
    installed = here / "kernels.toml"
    return installed if installed.exists() else here.parents[1] / "kernels.toml"


@cache
def read_table(path: Path) -> Table:
    with path.open("rb") as file:
        data = tomllib.load(file)
    ops, private = (
        {name: _entry(name, row) for name, row in data.get(part, {}).items()} for part in ("ops", "private")
    )
    return Table(tuple(data["support"]["common"]), ops, private)
