"""The kit as pytest tests: one per op and check, made in the author's own module."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fd_core.host.session import Session, open_session
from fd_core.ops.catalogue import catalogue
from fd_core.testkit.kit import CHECKS, Finding, examine
from fd_core.testkit.model_checks import examine_model
from fd_core.testkit.report import failures, report, write


@dataclass(frozen=True)
class Run:
    """The device under test and what was found so far."""

    session: Session
    findings: list[Finding] = field(default_factory=list)

    def take(self, found: list[Finding]) -> None:
        """Fail with every failure, skip when nothing applied."""
        self.findings.extend(found)
        lines = failures(found)
        if lines:
            pytest.fail("\n".join(lines), pytrace=False)
        if all(finding.status == "skip" for finding in found):
            pytest.skip(found[0].detail if found else "no case of this op has the dtype")


def generate(
    platform: str, ops: Sequence[str] | None, dtypes: Sequence[str] | None, model: bool
) -> dict[str, Any]:
    tests: dict[str, Any] = {"fd_run": _fixture(platform), "test_op": _op_test(ops, dtypes)}
    return tests | ({"test_model": _model_test()} if model else {})


def _fixture(platform: str) -> Any:
    @pytest.fixture(scope="module")
    def fd_run(request: pytest.FixtureRequest) -> Iterator[Run]:
        run = Run(open_session(platform, fallback="allow"))
        yield run
        file = request.config.getoption("--fd-report", None)
        if file:
            write(Path(file), report(run.session, run.findings))

    return fd_run


def _op_test(ops: Sequence[str] | None, dtypes: Sequence[str] | None) -> Callable[..., None]:
    @pytest.mark.parametrize("check", CHECKS)
    @pytest.mark.parametrize("op", ops or sorted(catalogue()))
    def test_op(fd_run: Run, op: str, check: str) -> None:
        fd_run.take(list(examine(fd_run.session, [op], dtypes, [check])))

    return test_op


def _model_test() -> Callable[..., None]:
    def test_model(fd_run: Run) -> None:
        fd_run.take(list(examine_model(fd_run.session)))

    return test_model
