"""Writes docs/matrix.md: what the bundled plug-ins have kernels for, by `fd matrix --sim`.

python tools/docs/write_matrix.py           # a test compares file and matrix
"""

from __future__ import annotations

from pathlib import Path

from fd_core.cli.matrix import Cell, build
from fd_core.host.plugins import plugin_host

TARGET = Path(__file__).parents[2] / "docs" / "matrix.md"
BUNDLED = ("cpu",)
HEAD = """# Capability matrix

What each op has a kernel for, by platform and architecture, written by `python tools/docs/write_matrix.py`
from the predicates that also choose the kernel of a call (`fd matrix --sim NAME:ARCH`). It tells what the
sources support; `fd matrix` tells what your build on your machine does, `fd why OP` why. An op or element
type without a kernel runs on its NumPy oracle if `FD_FALLBACK` allows it, and is an error otherwise.
"""


def served(cell: Cell) -> bool:
    return cell.served == "kernel" or any(other.source_supports for other in cell.others)


def document() -> str:
    """The whole file."""
    offers = plugin_host().simulated_devices()
    sims = [(name, info.arch) for name, info in offers if name in BUNDLED]
    matrix = build(plugin_host(), sims=[f"{name}:{arch}" for name, arch in sims])
    rows: dict[str, dict[tuple[str, str], list[Cell]]] = {}
    for cell in matrix.cells:
        rows.setdefault(cell.op, {}).setdefault((cell.platform, cell.arch), []).append(cell)
    head = "".join(f" {name} {arch} |" for name, arch in sims)
    lines = [f"| op |{head}", "|---|" + "---|" * len(sims)]
    for op, cells in rows.items():
        lines.append(f"| `{op}` |" + "".join(f" {_cell(cells[sim])} |" for sim in sims))
    return HEAD + "\n" + "\n".join(lines) + "\n"


def _cell(cells: list[Cell]) -> str:
    """The element types with a kernel; "all" if every one of the contract's has."""
    names = [cell.dtype for cell in cells if served(cell)]
    return "all" if len(names) == len(cells) else ", ".join(names) or "-"


if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8")
