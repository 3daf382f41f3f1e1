"""`fd conformance`: check every kernel of a platform, and write the report that its authors sign off."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fd_core.host.session import Session
    from fd_core.testkit.kit import Finding


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--platform", help="platform to check (default: the one in use)")
    parser.add_argument("--op", action="append", help="only this op")
    parser.add_argument("--dtype", action="append", help="only this dtype")
    parser.add_argument("--check", action="append", help="only this check")
    parser.add_argument("--model", action="store_true", help="also run a small model against the oracles")
    parser.add_argument("--bench", action="store_true", help="time the cases for it instead of checking")
    parser.add_argument("--against", default="", metavar="PROVIDER", help="with --bench: compare with it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON")
    parser.add_argument("--verbose", action="store_true", help="list every failure, not the first per op")


def run(args: argparse.Namespace) -> int:
    """0 if nothing failed, else 1."""
    from fd_core.host.session import open_session
    from fd_core.testkit.bench import table, timings
    from fd_core.testkit.report import report, text, write

    _refuse_unknown(args)
    session = open_session(args.platform, fallback="allow")  # what has no kernel is in the report
    times = list(timings(session, args.op, args.dtype, args.against)) if args.bench else []
    findings = [] if args.bench else _findings(session, args)
    if args.json:
        write(args.json, report(session, findings, times))
    sys.stdout.write(table(times) if args.bench else text(session, findings, args.verbose))
    return 1 if any(finding.status == "fail" for finding in findings) else 0


def _refuse_unknown(args: argparse.Namespace) -> None:
    from fd_core.host.errors import FdError
    from fd_core.ops.catalogue import catalogue
    from fd_core.testkit.kit import CHECKS

    for given, known, what in ((args.op, catalogue(), "op"), (args.check, CHECKS, "check")):
        unknown = sorted(set(given or ()) - set(known))
        if unknown:
            raise FdError(f"no {what} is called {', '.join(unknown)}; there are {', '.join(known)}")


def _findings(session: Session, args: argparse.Namespace) -> list[Finding]:
    from fd_core.testkit.kit import examine
    from fd_core.testkit.model_checks import examine_model
    from fd_core.testkit.quant_checks import examine_quantization

    found = list(examine(session, args.op, args.dtype, args.check))
    return found + ([*examine_model(session), *examine_quantization(session)] if args.model else [])
