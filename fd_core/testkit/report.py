"""What a run of the conformance kit found, as JSON and as a table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fd_core.host.dispatch import FallbackOp

if TYPE_CHECKING:
    from fd_core.host.session import Session
    from fd_core.testkit.bench import Timing
    from fd_core.testkit.kit import Finding

Json = dict[str, Any]
SCHEMA_VERSION = 1


def report(session: Session, findings: Sequence[Finding], timings: Sequence[Timing] = ()) -> Json:
    """Versions, device, build stamps, every finding and every timing."""
    from fd_core.cli.doctor import versions
    from fd_core.host.jsonable import from_device
    from fd_core.host.plugins import plugin_host

    stamps = {p.found.name: p.manifest.stamp for p in plugin_host().plugins if p.loaded and p.manifest}
    return {
        "schema_version": SCHEMA_VERSION,
        **versions(),
        "platform": session.platform.name,
        "device": from_device(session.device),
        "stamps": stamps,
        "providers": {op: frozen.kernel.provider for op, frozen in session.ops.table.items()},
        "without_kernel": without_kernel(session),
        "findings": [asdict(finding) for finding in findings],
        "timings": [asdict(timing) for timing in timings],
    }


def without_kernel(session: Session) -> list[str]:
    """Ops that the oracle serves in the place of a kernel, or nothing does."""
    fallbacks = [name for name, op in session.ops.table.items() if isinstance(op, FallbackOp)]
    return sorted([*session.ops.missing, *fallbacks])


def write(file: Path, data: Json) -> None:
    file.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def text(session: Session, findings: Sequence[Finding], verbose: bool = False) -> str:
    """One line per op, then the failures (the first of each op and check, unless `verbose`)."""
    ops = dict.fromkeys(finding.op for finding in findings)
    lines = [f"{session.platform.name}: {session.device.name} ({session.device.arch})"]
    lines.append(f"{'op':40} {'provider':12} {'pass':>6} {'skip':>6} {'fail':>6}")
    for op in ops:
        count = Counter(finding.status for finding in findings if finding.op == op)
        frozen = session.ops.table.get(op)
        provider = frozen.kernel.provider if frozen else ""
        lines.append(f"{op:40} {provider:12} {count['pass']:6} {count['skip']:6} {count['fail']:6}")
    lines += failures(findings, verbose)
    missing = without_kernel(session)
    lines += [f"no kernel: {', '.join(missing)}"] if missing else []
    return "\n".join(lines) + "\n"


def failures(findings: Sequence[Finding], verbose: bool = True) -> list[str]:
    seen: Counter[tuple[str, str]] = Counter()
    lines = []
    for finding in findings:
        if finding.status == "fail":
            seen[finding.op, finding.check] += 1
            if verbose or seen[finding.op, finding.check] == 1:
                where = f"{finding.op}, {finding.check}, {finding.case} {finding.dtype}"
                lines.append(f"FAIL {where}: {' '.join(finding.detail.split())[:300]}")
    return lines
