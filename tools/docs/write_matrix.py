"""Writes docs/matrix.md: what the bundled plug-ins have kernels for, by `fd matrix --sim`.

python tools/docs/write_matrix.py           # a test compares file and matrix
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from fd_core.cli.matrix import Cell, build
from fd_core.host.plugins import plugin_host

TARGET = Path(__file__).parents[2] / "docs" / "matrix.md"
BUNDLED = ("cpu", "cuda", "xpu")
Column = dict[str, str]
HEAD = """# Capability matrix

What each op has a kernel for, by platform and architecture, written by `python tools/docs/write_matrix.py`
from the predicates that also choose the kernel of a call (`fd matrix --sim NAME:ARCH`). It tells what the
sources support; `fd matrix` tells what your build on your machine does, `fd why OP` why. An op or element
type without a kernel runs on its NumPy oracle if `FD_FALLBACK` allows it, and is an error otherwise.
Neighbours on a ladder of architectures that have the same kernels share a column.
"""


def served(cell: Cell) -> bool:
    return cell.served == "kernel" or any(other.source_supports for other in cell.others)


def missing() -> list[str]:
    """Bundled plug-ins that are not installed here: the file cannot be written without them."""
    described = {name for name, _ in plugin_host().simulated_devices()}
    return [name for name in BUNDLED if name not in described]


def document() -> str:
    """The whole file."""
    rows = merged(list(columns()))
    head = "".join(f" {name} {_archs(archs)} |" for name, archs, _ in rows)
    lines = [f"| op |{head}", "|---|" + "---|" * len(rows)]
    for op in rows[0][2]:
        lines.append(f"| `{op}` |" + "".join(f" {column[op]} |" for _, _, column in rows))
    return HEAD + "\n" + "\n".join(lines) + "\n"


def columns() -> Iterator[tuple[str, str, Column]]:
    """(platform, architecture, text by op) of every device that the bundled plug-ins describe."""
    for name, info in plugin_host().simulated_devices():
        if name in BUNDLED:
            cells = build(plugin_host(), sims=[f"{name}:{info.arch}"]).cells
            by_op = groupby(cells, key=lambda cell: cell.op)
            yield name, info.arch, {op: _cell(list(members)) for op, members in by_op}


def merged(found: list[tuple[str, str, Column]]) -> list[tuple[str, list[str], Column]]:
    """Equal neighbours of one platform as one column."""
    rows: list[tuple[str, list[str], Column]] = []
    for name, arch, column in found:
        if rows and rows[-1][0] == name and rows[-1][2] == column:
            rows[-1][1].append(arch)
        else:
            rows.append((name, [arch], column))
    return rows


def _archs(names: list[str]) -> str:
    return ", ".join(names) if len(names) < 5 else f"{names[0]} to {names[-1]}"


def _cell(cells: list[Cell]) -> str:
    """The element types with a kernel; "all" if every one of the contract's has."""
    names = [cell.dtype for cell in cells if served(cell)]
    return "all" if len(names) == len(cells) else ", ".join(names) or "-"


if __name__ == "__main__":
    if missing():
        sys.exit(f"write_matrix: want {', '.join(BUNDLED)} installed, have no {', '.join(missing())}")
    TARGET.write_text(document(), encoding="utf-8")
