"""Truncated sampling in NumPy: sort, cut, inverse transform in id order.

Probabilities become integer weights round(p * 2^50), whose sums do not depend on their order: kept
sets and draws are the same on every device that is given the same probabilities.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.ops.sampling._philox import scale_bits

Row = np.ndarray[Any, np.dtype[np.float32]]  # [V]
MASS_ONE = 2.0**50


def weights(p: Row) -> Any:
    """Integer weights; NaN and negative entries weigh nothing, entries above 1 as much as 1."""
    clean = np.where(p > 0, np.minimum(p, np.float32(1)), np.float32(0))
    return np.rint(clean.astype(np.float64) * MASS_ONE).astype(np.uint64)


def top_k_cut(p: Row, k: int) -> np.float32 | None:
    """The k-th largest positive value, None when there are fewer."""
    positive = np.sort(p[p > 0])[::-1]
    return positive[k - 1] if positive.size >= k else None


def keep_top_p(p: Row, keep: Any, bound: float) -> Any:
    """Of `keep`, the entries i for which the weight of all kept entries above p_i is below `bound`."""
    w = np.where(keep, weights(p), np.uint64(0))
    order = np.argsort(np.where(keep, -p, np.inf), kind="stable")
    above = np.cumsum(w[order]) - w[order]
    values = p[order]
    first = np.searchsorted(-values[keep[order]], -p, side="left")  # start of each value's tie group
    return keep & (above[np.minimum(first, p.size - 1)].astype(np.float64) < bound)


def kept(p: Row, top_k: int, top_p: np.float32, min_p: np.float32, renormalise: bool) -> Any:
    """Which ids may be drawn. `renormalise`: top_p counts after the renormalisation of top-k."""
    keep = p > 0
    if min_p > 0 and keep.any():
        keep &= p >= np.nanmax(p) * min(min_p, np.float32(1))
    base = MASS_ONE
    if 0 < top_k < p.size:
        cut = top_k_cut(np.where(keep, p, np.float32(0)), top_k)
        if cut is not None:
            keep &= p >= cut
            base = float(weights(p)[keep].sum()) if renormalise else base
    if top_p < 1 and keep.any():
        keep = keep_top_p(p, keep, float(top_p) * base)
    return keep


def draw(p: Row, keep: Any, bits: int) -> int:
    """Inverse transform over the kept ids in ascending order; the argmax if they weigh nothing."""
    running = np.cumsum(np.where(keep, weights(p), np.uint64(0)))
    total = int(running[-1])
    if total == 0:
        return best(p)
    return int(np.searchsorted(running, np.uint64(scale_bits(bits, total)), side="right"))


def best(p: Row) -> int:
    """Lowest id of the largest value, NaN aside; 0 if there is none."""
    numbers = np.flatnonzero(~np.isnan(p))
    return int(numbers[np.argmax(p[numbers])]) if numbers.size else 0


def sample(p: Row, top_k: int, top_p: np.float32, min_p: np.float32, renormalise: bool, bits: int) -> int:
    if not np.any(p > 0) or top_p <= 0:
        return best(p)
    return draw(p, kept(p, top_k, top_p, min_p, renormalise), bits)
