"""Speed of a platform's kernels on the cases marked `bench`: the conformance kit's other half."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fd_core.host.dispatch import Target, resolve
from fd_core.host.errors import FdError
from fd_core.host.oracle import oracle_kernel
from fd_core.testkit.ceilings import Ceilings
from fd_core.testkit.ceilings import measure as measure_ceilings
from fd_core.testkit.check import arguments
from fd_core.testkit.trial import Trial, declined

if TYPE_CHECKING:
    from fd_core.host.session import Session

#: Seconds of one sample (calls are repeated to fill it) and of all samples of one case.
SAMPLE, BUDGET = 2e-3, 0.3
MOST_SAMPLES = 25


@dataclass(frozen=True, slots=True)
class Timing:
    """Microseconds of one call: the median, and (third - first quartile) / median as `spread`.

    Rates follow from the case's own bytes and flops (0: the case states none); `of_ceiling` is the larger
    of the two as a share of what the device was measured to do (above 1: the case fits a cache).
    `ratio`: the other provider's median over this one's.
    """

    op: str
    case: str
    dtype: str
    provider: str
    microseconds: float
    spread: float
    samples: int
    bytes_per_second: float = 0.0
    flops_per_second: float = 0.0
    of_ceiling: float = 0.0
    against: str = ""
    ratio: float = 0.0


def timings(
    session: Session,
    ops: Sequence[str] | None = None,
    dtypes: Sequence[str] | None = None,
    against: str = "",
) -> Iterator[Timing]:
    """Every `bench` case that a kernel of this platform takes."""
    from fd_core.testkit.kit import trials

    ceilings = measure_ceilings(session)
    taken = (trial for trial in trials(session, ops, dtypes, bench=True) if declined(trial).ok)
    yield from (timing(trial, ceilings, against) for trial in taken)


def timing(trial: Trial, ceilings: Ceilings, against: str = "") -> Timing:
    frozen = trial.session.ops.table[trial.definition.name]
    median, spread, count = measure(trial, frozen.target)
    case, seconds = trial.case, median / 1e6
    size = case.bytes_of(trial.dtype)
    rates = size / seconds, case.flops / seconds
    ratio = measure(trial, other_target(trial, against))[0] / median if against else 0.0
    return Timing(
        *(trial.definition.name, case.id, str(trial.dtype), frozen.kernel.provider),
        *(round(median, 3), round(spread, 3), count),
        bytes_per_second=round(rates[0], 1),
        flops_per_second=round(rates[1], 1),
        of_ceiling=round(max(shares(ceilings, *rates)), 3),
        against=against,
        ratio=round(ratio, 3),
    )


def shares(ceilings: Ceilings, bytes_per_second: float, flops_per_second: float) -> tuple[float, float]:
    """Of the copy's rate and of the product's (0 where the device has no product to compare with)."""
    most = ceilings.flops_per_second
    return bytes_per_second / ceilings.bytes_per_second, flops_per_second / most if most else 0.0


def other_target(trial: Trial, provider: str) -> Target:
    """The kernel of another provider for the same op. FdError if there is none."""
    frozen = trial.session.ops.table[trial.definition.name]
    offers = [frozen.kernel, *(kernel for kernel, verdict in frozen.losers if verdict.ok)]
    offers.append(oracle_kernel(trial.definition))
    for kernel in offers:
        if kernel.provider == provider:
            return resolve(kernel.target)
    have = ", ".join(dict.fromkeys(kernel.provider for kernel in offers))
    raise FdError(f"--against: want a provider of {trial.definition.name} ({have}), have {provider!r}")


def measure(trial: Trial, target: Target) -> tuple[float, float, int]:
    """(median microseconds of a call, relative spread, samples) after a first call that is not counted."""
    platform = trial.session.platform
    values = arguments(trial.definition, trial.inputs())
    placed = [platform.from_host(v) if isinstance(v, np.ndarray) else v for v in values.values()]

    def run(calls: int) -> float:
        started = time.perf_counter()
        for _ in range(calls):
            target(*placed)
        platform.synchronize()
        return (time.perf_counter() - started) / calls

    run(1)
    return summary(run)


def summary(run: Callable[[int], float]) -> tuple[float, float, int]:
    """Samples of as many calls as fill SAMPLE seconds, until BUDGET is spent."""
    first = run(1)
    calls = max(1, int(SAMPLE / max(first, 1e-9)))
    found: list[float] = []
    ends = time.perf_counter() + BUDGET
    while len(found) < MOST_SAMPLES and (not found or time.perf_counter() < ends):
        found.append(run(calls))
    median = statistics.median(found)
    low, high = (float(np.quantile(found, q)) for q in (0.25, 0.75))
    return median * 1e6, (high - low) / median, len(found)


def table(rows: Sequence[Timing]) -> str:
    """One line per timing."""
    lines = [
        f"{'op':34} {'case':28} {'dtype':9} {'us':>10} {'+-':>5} {'GB/s':>8} {'GFLOP/s':>8} {'ceiling':>8} "
        f"{'ratio':>8}"
    ]
    for row in rows:
        rates = [f"{rate / 1e9:8.2f}" if rate else f"{'-':>8}" for rate in _rates(row)]
        ratio = f"{row.ratio:8.2f}" if row.against else f"{'-':>8}"
        head = f"{row.op:34} {row.case[:28]:28} {row.dtype:9} {row.microseconds:10.2f} {row.spread:5.0%}"
        share = f"{row.of_ceiling:8.0%}" if any(_rates(row)) else f"{'-':>8}"
        lines.append(f"{head} {rates[0]} {rates[1]} {share} {ratio}")
    return "\n".join(lines) + "\n"


def _rates(row: Timing) -> tuple[Any, Any]:
    return row.bytes_per_second, row.flops_per_second
