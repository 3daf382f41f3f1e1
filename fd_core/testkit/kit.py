"""The conformance kit: every op of a platform, case by case, against its NumPy oracle and its contract.

`examine(session)` yields one `Finding` per (op, case, dtype, check); `fd conformance` prints them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fd_core.ops.catalogue import catalogue
from fd_core.testkit import checks, device_checks
from fd_core.testkit.trial import NotApplicable, Trial, declined

if TYPE_CHECKING:
    from fd_core.host.session import Session

CHECKS: dict[str, Callable[[Trial], None]] = {
    check.__name__: check
    for check in (
        checks.agrees_with_oracle,
        checks.repeats,
        checks.rows_are_independent,
        checks.no_rows,
        checks.strided_tensors,
        checks.misaligned_tensors,
        checks.stays_inside,
        checks.wrong_dtypes,
        checks.wrong_shapes,
        device_checks.wrong_devices,
        device_checks.does_not_allocate,
        device_checks.replays,
        device_checks.predicate_agrees,
    )
}


@dataclass(frozen=True, slots=True)
class Finding:
    """`status`: pass, fail, or skip (the check does not apply; `detail` says why)."""

    op: str
    case: str
    dtype: str
    check: str
    status: str
    detail: str = ""


def judge(trial: Trial, name: str) -> Finding:
    """Run one check. What the kernel raises is a finding, not an error of the kit."""
    where = (*trial.where, name)
    try:
        CHECKS[name](trial)
    except NotApplicable as why:
        return Finding(*where, "skip", str(why))
    except Exception as error:
        return Finding(*where, "fail", f"{type(error).__name__}: {error}".strip()[:600])
    return Finding(*where, "pass")


def trials(
    session: Session,
    ops: Sequence[str] | None = None,
    dtypes: Sequence[str] | None = None,
    bench: bool = False,
) -> Iterator[Trial]:
    """Every case, in every dtype, of the ops with a kernel on this platform; `bench`: those for timing."""
    for name, definition in catalogue().items():
        if (ops and name not in ops) or name not in session.ops:
            continue
        for case in definition.cases:
            if case.bench == bench:
                kinds = [t for t in case.dtypes if not dtypes or t.name in dtypes]
                yield from (Trial(session, definition, case, t) for t in kinds)


def examine(
    session: Session,
    ops: Sequence[str] | None = None,
    dtypes: Sequence[str] | None = None,
    only: Sequence[str] | None = None,
) -> Iterator[Finding]:
    """Findings of the checks named by `only` (default: all)."""
    for trial in trials(session, ops, dtypes):
        verdict = declined(trial)
        for name in only or CHECKS:
            if verdict.ok or name == device_checks.predicate_agrees.__name__:
                yield judge(trial, name)
            else:
                yield Finding(*trial.where, name, "skip", f"not taken by the kernel: {verdict}"[:600])
