"""The conformance kit on fd-cpu: every check, every op, every case and dtype, as authors run it."""

from __future__ import annotations

import pytest

from fd_core.api.verdict import Verdict
from fd_core.host.freeze import freeze
from fd_core.host.ledger import Ledger
from fd_core.host.session import Session
from fd_core.ops.catalogue import catalogue
from fd_core.testkit.kit import examine

library = pytest.importorskip("fd_cpu.library", reason="fd-cpu is not installed")
from fd_cpu.kernels import kernels  # noqa: E402
from fd_cpu.platform import CPUPlatform  # noqa: E402

VERDICT: Verdict = library.verdict()
pytestmark = pytest.mark.skipif(not VERDICT.ok, reason=str(VERDICT))


@pytest.fixture(scope="module")
def session() -> Session:
    platform = CPUPlatform()
    info = platform.open(0)
    table = freeze(catalogue(), kernels(), info, policy="error")
    return Session(platform, info, table, [], {}, Ledger(table, {}))


@pytest.mark.parametrize("op", sorted({kernel.op for kernel in kernels()}))
def test_op_conforms(session: Session, op: str) -> None:
    if op not in session.ops and library.override() is not None:
        pytest.skip(f"a developer's library without it: {session.ops.missing[op]}")
    findings = list(examine(session, [op]))
    failures = [finding for finding in findings if finding.status == "fail"]
    assert not failures, "\n".join(f"{f.case} {f.dtype} {f.check}: {f.detail}" for f in failures)
    assert any(finding.status == "pass" for finding in findings), session.ops.missing.get(op)
