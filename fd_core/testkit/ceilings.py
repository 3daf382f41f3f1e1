"""What a device can do at most, measured through the platform itself."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fd_core.api import dtype as dt
from fd_core.api.dtype import DType
from fd_core.api.tensor import TensorSpec
from fd_core.host.errors import FdError
from fd_core.host.oracle import ORACLE

if TYPE_CHECKING:
    from fd_core.host.session import Session

#: Bytes of one side of the copy, as far as the device's memory allows: beyond every cache.
COPY = 256 << 20
#: Rows, depth and columns of the product.
SQUARE = 2048
REPEATS, CALLS = 5, 4


@dataclass(frozen=True, slots=True)
class Ceilings:
    """`bytes_per_second`: read and written by a copy inside the device. `flops_per_second`: of the
    platform's own `linear` on a product of SQUARE^3, in its fastest type; 0 where it has no such kernel."""

    bytes_per_second: float
    flops_per_second: float


def measure(session: Session) -> Ceilings:
    """Medians of a few repeats; a second on a fast device."""
    rates = [flops(session, kind) for kind in (dt.bfloat16, dt.float16, dt.float32)]
    return Ceilings(copy_rate(session), max(rates))


def copy_rate(session: Session) -> float:
    size = min(COPY, session.platform.memory().free // 8)
    src, dst = (session.platform.empty(TensorSpec((size,), dt.uint8)) for _ in range(2))
    return 2 * size / _seconds(session, lambda: session.platform.copy_(dst, src))


def flops(session: Session, kind: DType) -> float:
    """0 where `linear` is missing, an oracle, or not for this type."""
    op = session.ops.table.get("linear")
    if op is None or op.kernel.provider == ORACLE:
        return 0.0
    put = session.platform.from_host
    rng = np.random.default_rng(0)
    x, weight = (put(rng.standard_normal((SQUARE, SQUARE)).astype(kind.numpy())) for _ in range(2))
    out = session.platform.empty(x.spec)
    try:
        return 2 * SQUARE**3 / _seconds(session, lambda: op.target(x, weight, None, out))
    except (FdError, TypeError, ValueError):
        return 0.0


def _seconds(session: Session, call: Callable[[], None]) -> float:
    """Of one call: the median over `REPEATS` runs of `CALLS`."""
    call()
    session.platform.synchronize()
    found = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        for _ in range(CALLS):
            call()
        session.platform.synchronize()
        found.append((time.perf_counter() - started) / CALLS)
    return statistics.median(found)
