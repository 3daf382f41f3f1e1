"""`fd matrix`: every op, dtype and device with the kernel that serves it, or the reasons why none does."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Literal

from pydantic import BaseModel, ConfigDict

from fd_core import environ
from fd_core.api.verdict import Verdict
from fd_core.cli.why import find_op
from fd_core.host.explain import Offer, chosen, dtypes, example, explain
from fd_core.host.facts import Opened, open_device
from fd_core.host.freeze import no_kernel
from fd_core.host.jsonable import from_verdict
from fd_core.host.plugins import PluginHost, plugin_host
from fd_core.ops.catalogue import catalogue
from fd_core.ops.schema import OpDef

SCHEMA_VERSION = 1


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ReasonRow(_Row):
    code: str
    subject: str
    want: str
    have: str
    fix: str


class KernelRow(_Row):
    """A kernel that does not serve the cell though its source might: `built` false, or reasons.
    `source`: the files it is made from."""

    provider: str
    source: str
    source_supports: bool
    built: bool
    reasons: tuple[ReasonRow, ...] = ()


class Cell(_Row):
    """`served`: by a kernel of the platform, by the oracle in its place, or not at all.

    `source`: the files of the first kernel whose source supports the cell, `built`: whether this build
    contains it. `reasons`: why no kernel serves the cell; empty where one does.
    """

    op: str
    family: str
    dtype: str
    platform: str
    arch: str
    served: Literal["kernel", "oracle", "none"]
    provider: str
    source: str = ""
    built: bool = False
    reasons: tuple[ReasonRow, ...] = ()
    others: tuple[KernelRow, ...] = ()


class Matrix(_Row):
    """The whole report; `fd matrix --schema` prints its JSON schema."""

    schema_version: int
    fd_core: str
    plugins: dict[str, str]
    cells: tuple[Cell, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--platform", action="append", help="only this platform (default: all usable ones)")
    parser.add_argument(
        "--sim",
        action="append",
        metavar="NAME:ARCH",
        help="a device that is not there, as its plug-in tells",
    )
    parser.add_argument("--op", action="append", help="only this op")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of --json")


def run(args: argparse.Namespace) -> int:
    if args.schema:
        sys.stdout.write(json.dumps(Matrix.model_json_schema(), indent=2) + "\n")
        return 0
    matrix = build(plugin_host(), args.platform, args.op, args.sim)
    sys.stdout.write(matrix.model_dump_json(indent=1) + "\n" if args.json else text(matrix))
    return 0


def build(
    host: PluginHost,
    platforms: list[str] | None = None,
    ops: list[str] | None = None,
    sims: list[str] | None = None,
) -> Matrix:
    """Every op of the catalogue (or `ops`) on every usable platform (or `platforms`, or simulated ones)."""
    from fd_core import __version__

    sims = sims or ([] if platforms else [s for s in [environ.value("FD_SIM")] if s])
    usable = [] if sims else [fact.name for fact in host.facts() if fact.verdict.ok]
    devices = [open_device(host, name) for name in platforms or usable]
    devices += [open_device(host, sim=sim) for sim in sims]
    definitions = [find_op(name) for name in ops] if ops else list(catalogue().values())
    cells = [cell(d, str(t), device) for d in definitions for t in dtypes(d) for device in devices]
    versions = {p.found.distribution: p.found.version for p in host.plugins if p.loaded or p.described}
    return Matrix(schema_version=SCHEMA_VERSION, fd_core=__version__, plugins=versions, cells=tuple(cells))


def cell(definition: OpDef, dtype: str, device: Opened) -> Cell:
    from fd_core.api.dtype import dtype as by_name

    rows = explain(definition, device.kernels, device.info, example(definition, by_name(dtype)))
    winner = chosen(rows)
    assert winner is not None  # the oracle takes everything
    by_oracle = winner.is_oracle and not device.oracle_is_native
    source = next((row for row in rows if row.source.ok), winner)
    return Cell(
        op=definition.name,
        family=definition.spec.family,
        dtype=dtype,
        platform=device.name,
        arch=device.info.arch,
        served="oracle" if by_oracle else "kernel",
        provider=winner.kernel.provider,
        source=source.kernel.source,
        built=not by_oracle,
        reasons=_reasons(_refusals(definition, rows, device)) if by_oracle else (),
        others=tuple(_other(row) for row in rows if row is not winner and not row.is_oracle),
    )


def _refusals(definition: OpDef, rows: list[Offer], device: Opened) -> Verdict:
    kernels = [row for row in rows if not row.is_oracle]
    return (
        Verdict.all(row.verdict for row in kernels) if kernels else no_kernel(definition.name, device.info)
    )


def _reasons(verdict: Verdict) -> tuple[ReasonRow, ...]:
    return tuple(ReasonRow(**reason) for reason in from_verdict(verdict))


def _other(row: Offer) -> KernelRow:
    return KernelRow(
        provider=row.kernel.provider,
        source=row.kernel.source,
        source_supports=row.source.ok,
        built=row.built.ok,
        reasons=_reasons(row.verdict),
    )


def text(matrix: Matrix) -> str:
    """One line per op and platform, then each reason once with the number of cells that it keeps out."""
    lines = []
    groups: dict[tuple[str, str, str], list[Cell]] = {}
    for one in matrix.cells:
        groups.setdefault((one.op, one.platform, one.arch), []).append(one)
    for (op, platform, arch), cells in groups.items():
        served = ", ".join(f"{cell.dtype} {_state(cell)}" for cell in cells)
        lines.append(f"{op:40} {platform + ' ' + arch:18} {served}")
    return "\n".join([*lines, "", *_explained(matrix)]) + "\n"


def _state(cell: Cell) -> str:
    if cell.served == "kernel":
        return cell.provider
    return "not built" if any(row.source_supports for row in cell.others) else "-"


def _explained(matrix: Matrix) -> list[str]:
    counts: dict[str, list[str]] = {}
    for cell in matrix.cells:
        for reason in cell.reasons:
            line = f"[{reason.code}] want {reason.want}, have {reason.have}; fix: {reason.fix}"
            counts.setdefault(line, []).append(cell.op)
    rows = [(line, list(dict.fromkeys(ops))) for line, ops in counts.items()]
    head = ["Kernels of this build, `not built` ones that its sources have, `-` the oracle. Reasons:"]
    return head + [f"  {line}\n      ({_few(ops)})" for line, ops in rows] if rows else []


def _few(ops: list[str]) -> str:
    more = f" and {len(ops) - 4} more" if len(ops) > 4 else ""
    return ", ".join(ops[:4]) + more
