"""`fd why OP`: which kernel serves a call, why the others do not, and which plug-ins are out."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fd_core.api.dtype import DType
    from fd_core.api.tensor import TensorSpec
    from fd_core.host.explain import Offer
    from fd_core.ops.schema import OpDef

Json = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("op", help="an op's name, such as rms_norm")
    parser.add_argument("--dtype", help="element type of the call (default: the op's first)")
    parser.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="[NAME=]N,N,...",
        help="shape of a tensor parameter (without a name: of the first)",
    )
    parser.add_argument("--platform", help="platform to ask (default: the one in use)")
    parser.add_argument(
        "--sim", metavar="NAME:ARCH", help="a device that is not there, as its plug-in tells"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """0 if a kernel of the platform serves the call, 1 if only the oracle does or nothing."""
    report = explain_op(args.op, args.dtype, args.shape, args.platform, args.sim)
    sys.stdout.write(json.dumps(report, indent=2) + "\n" if args.json else text(report))
    return 0 if report["served_by"] and not report["fallback"] else 1


def explain_op(
    name: str, dtype: str | None, shapes: Iterable[str], platform: str | None, sim: str | None = None
) -> Json:
    from fd_core.host.explain import chosen, example, explain
    from fd_core.host.facts import open_device
    from fd_core.host.jsonable import from_device
    from fd_core.host.plugins import plugin_host

    definition = find_op(name)
    kind = _dtype(definition, dtype)
    call = example(definition, kind, dict(_shape(definition, text, kind) for text in shapes))
    host = plugin_host()
    opened = open_device(host, platform, sim=sim)
    rows = explain(definition, opened.kernels, opened.info, call)
    winner = chosen(rows)
    return {
        "op": name,
        "call": _call_text(definition, call),
        "platform": opened.name,
        "device": from_device(opened.info),
        "served_by": winner.kernel.provider if winner else "",
        "fallback": bool(winner and winner.is_oracle and not opened.oracle_is_native),
        "kernels": [_row(row, row is winner, host.version_of(row.kernel.provider)) for row in rows],
        "plugins_out": [plugin_json(p) for p in host.plugins if not (p.loaded or p.described)],
    }


def find_op(name: str) -> OpDef:
    """The op of the catalogue. FdError for another name, with what to use instead where that is known."""
    from fd_core.compat.fastdeploy.absent import REASONS, refusal
    from fd_core.host.errors import FdError
    from fd_core.ops.catalogue import find

    try:
        return find(name)
    except KeyError as error:
        verdict = refusal(name) if name in REASONS else None
        raise FdError(str(verdict or error.args[0]), verdict) from None


def _dtype(definition: OpDef, name: str | None) -> DType:
    from fd_core.api.dtype import dtype
    from fd_core.host.errors import FdError
    from fd_core.host.explain import dtypes

    known = dtypes(definition)
    try:
        wanted = dtype(name) if name else known[0]
    except ValueError as error:
        raise FdError(str(error)) from None
    if wanted not in known:
        have = ", ".join(map(str, known))
        raise FdError(f"{definition.name}: its contract has no {wanted}; its dtypes are {have}")
    return wanted


def _shape(definition: OpDef, text: str, dtype: DType) -> tuple[str, TensorSpec]:
    """`x=4,1024` or `4,1024`."""
    from fd_core.api.kernel import ParamKind
    from fd_core.api.tensor import TensorSpec
    from fd_core.host.errors import FdError

    tensors = [p.name for p in definition.spec.params if p.kind is not ParamKind.ATTR]
    name, _, sizes = text.rpartition("=")
    name = name or tensors[0]
    try:
        shape = tuple(int(size) for size in sizes.replace("x", ",").split(","))
    except ValueError:
        raise FdError(f"--shape: want NAME=N,N,..., have {text!r}") from None
    if name not in tensors:
        raise FdError(f"--shape: {definition.name} has no tensor {name!r}; it has {', '.join(tensors)}")
    return name, TensorSpec(shape, dtype)


def _call_text(definition: OpDef, call: tuple[Any, ...]) -> str:
    pairs = zip(definition.spec.params, call, strict=True)
    return ", ".join(f"{p.name}={(getattr(v, 'spec', None) and _spec_text(v)) or v}" for p, v in pairs)


def _spec_text(tensor: Any) -> str:
    return f"{tensor.dtype}{list(tensor.shape)}"


def _row(row: Offer, selected: bool, version: str) -> Json:
    from fd_core.host.jsonable import from_verdict

    return {
        "provider": row.kernel.provider,
        "version": version,
        "priority": row.kernel.priority,
        "numerics": row.kernel.numerics.value,
        "selected": selected,
        "source_supports": row.source.ok,
        "built": row.built.ok,
        "reasons": from_verdict(row.verdict),
    }


def plugin_json(plugin: Any) -> Json:
    from fd_core.host.jsonable import from_verdict

    found = plugin.found
    return {
        "name": found.name,
        "distribution": found.distribution,
        "version": found.version,
        "module": found.module,
        "loaded": plugin.loaded,
        "steps": [
            {
                "step": step.name,
                "ok": step.verdict.ok,
                "milliseconds": round(step.seconds * 1e3, 1),
                "reasons": from_verdict(step.verdict),
            }
            for step in plugin.steps
        ],
    }


def text(report: Json) -> str:
    device = report["device"]
    lines = [f"{report['op']}({report['call']})"]
    lines.append(f"on {report['platform']}, {device['name']} ({device['arch']}):")
    for row in report["kernels"]:
        state = "SELECTED" if row["selected"] else "rejected" if row["reasons"] else "accepted"
        lines.append(f"  {row['provider']:12} {row['version']:8} {state:9} priority {row['priority']}")
        lines += [f"      {reason_text(reason)}" for reason in row["reasons"]]
    if report["fallback"]:
        lines.append("  no kernel of this platform serves it: the NumPy oracle is a fallback")
    lines += [f"plug-in {p['name']} is out:\n{_out(p)}" for p in report["plugins_out"]]
    return "\n".join(lines) + "\n"


def _out(plugin: Json) -> str:
    reasons = [reason for step in plugin["steps"] for reason in step["reasons"]]
    return "\n".join(f"      {reason_text(reason)}" for reason in reasons)


def reason_text(reason: Json) -> str:
    fix = f"; fix: {reason['fix']}" if reason["fix"] else ""
    return f"[{reason['code']}] {reason['subject']}: want {reason['want']}, have {reason['have']}{fix}"
