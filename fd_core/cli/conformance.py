"""`fd conformance`: check every kernel of a platform, and write the report that its authors sign off."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fd_core.host.session import Session
    from fd_core.testkit.conformance import Finding

Json = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--platform", help="platform to check (default: the one in use)")
    parser.add_argument("--op", action="append", help="only this op")
    parser.add_argument("--dtype", action="append", help="only this dtype")
    parser.add_argument("--check", action="append", help="only this check")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON")
    parser.add_argument("--verbose", action="store_true", help="list every failure, not the first per op")


def run(args: argparse.Namespace) -> int:
    """0 if nothing failed, else 1."""
    from fd_core.host.errors import FdError
    from fd_core.host.session import open_session
    from fd_core.ops.catalogue import catalogue
    from fd_core.testkit.conformance import CHECKS, examine

    for given, known, what in ((args.op, catalogue(), "op"), (args.check, CHECKS, "check")):
        unknown = sorted(set(given or ()) - set(known))
        if unknown:
            raise FdError(f"no {what} is called {', '.join(unknown)}; there are {', '.join(known)}")
    session = open_session(args.platform)
    findings = list(examine(session, args.op, args.dtype, args.check))
    if args.json:
        args.json.write_text(json.dumps(report(session, findings), indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(text(session, findings, args.verbose))
    return 1 if any(finding.status == "fail" for finding in findings) else 0


def report(session: Session, findings: list[Finding]) -> Json:
    """Versions, device, build stamps and every finding."""
    from fd_core.cli.doctor import versions
    from fd_core.host.jsonable import from_device
    from fd_core.host.plugins import plugin_host

    stamps = {p.found.name: p.manifest.stamp for p in plugin_host().plugins if p.loaded and p.manifest}
    return {
        "schema_version": 1,
        **versions(),
        "platform": session.platform.name,
        "device": from_device(session.device),
        "stamps": stamps,
        "providers": {op: frozen.kernel.provider for op, frozen in session.ops.table.items()},
        "without_kernel": sorted(session.ops.missing),
        "findings": [asdict(finding) for finding in findings],
    }


def text(session: Session, findings: list[Finding], verbose: bool) -> str:
    """One line per op, then the failures."""
    ops = dict.fromkeys(finding.op for finding in findings)
    lines = [f"{session.platform.name}: {session.device.name} ({session.device.arch})"]
    lines.append(f"{'op':40} {'provider':12} {'pass':>6} {'skip':>6} {'fail':>6}")
    for op in ops:
        count = Counter(finding.status for finding in findings if finding.op == op)
        provider = session.ops.table[op].kernel.provider
        lines.append(f"{op:40} {provider:12} {count['pass']:6} {count['skip']:6} {count['fail']:6}")
    lines += _failures(findings, verbose)
    lines += [f"no kernel: {', '.join(sorted(session.ops.missing))}"] if session.ops.missing else []
    return "\n".join(lines) + "\n"


def _failures(findings: list[Finding], verbose: bool) -> list[str]:
    seen: Counter[tuple[str, str]] = Counter()
    lines = []
    for finding in findings:
        if finding.status == "fail":
            seen[finding.op, finding.check] += 1
            if verbose or seen[finding.op, finding.check] == 1:
                where = f"{finding.op}, {finding.check}, {finding.case} {finding.dtype}"
                lines.append(f"FAIL {where}: {' '.join(finding.detail.split())[:300]}")
    return lines
