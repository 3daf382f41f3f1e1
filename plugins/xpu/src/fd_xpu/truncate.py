"""Truncated sampling of whole batches: sorts, integer weights, running sums.

A probability weighs round(p * 2^50), an integer, so that sums do not depend on their order and equal
probabilities give equal tokens on every device. Parameters and random numbers stay on the host: one number
per row goes there and one comes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np

from fd_xpu.compute import Array, Value, host, like
from fd_xpu.framework import paddle
from fd_xpu.philox import scaled

MASS_ONE = 2.0**50
_HALF_EVEN = (
    2.0**23
)  # adding and subtracting it rounds a smaller float32 to the nearest integer, ties to even


def column(values: Array, at: Value) -> Value:
    return like(values.reshape(-1, 1), at)


def best(p: Value) -> Value:
    """[n] int64: the lowest id of each row's largest value; NaN never wins, 0 where there is only NaN."""
    count = p.shape[1]
    number = ~paddle.isnan(p)
    values = paddle.where(number, p, paddle.full_like(p, float("-inf")))
    wins = number & (values == values.max(-1, keepdim=True))
    back = like(np.arange(count, 0, -1), p).expand([p.shape[0], count])
    most = paddle.where(wins, back, paddle.zeros_like(back)).max(-1)
    return paddle.where(most > 0, count - most, paddle.zeros_like(most))


def weights(p: Value) -> Value:
    """Integer weights; NaN and negative entries weigh nothing, entries above 1 as much as 1."""
    zero = paddle.zeros_like(p)
    mass = paddle.where(p > 0, p, zero).clip(max=1.0) * MASS_ONE
    rounded = (mass + _HALF_EVEN) - _HALF_EVEN
    return paddle.where(mass < _HALF_EVEN, rounded, mass).astype("int64")


def descending(values: Value) -> Value:
    return paddle.sort(values, axis=-1, descending=True)


def where_kept(keep: Value, values: Value) -> Value:
    return paddle.where(keep, values, paddle.zeros_like(values))


def kept(p: Value, top_k: Array, top_p: Array, min_p: Array, renormalise: bool) -> Value:
    """[n, V] bool: which ids may be drawn. `renormalise`: top_p counts after top-k's renormalisation."""
    keep = p > 0
    if (min_p > 0).any():
        limit = where_kept(keep, p).max(-1, keepdim=True) * column(
            np.clip(min_p, 0, 1).astype(np.float32), p
        )
        keep = keep & (p >= limit)
    base = np.full(len(top_k), MASS_ONE)
    cutting = (top_k > 0) & (top_k < p.shape[1])
    if cutting.any():
        cut = kth_largest(where_kept(keep, p), np.where(cutting, top_k, 1), cutting)
        keep = keep & (p >= cut)
        took = host(cut).reshape(-1) > 0
        if renormalise and took.any():
            sums = host(where_kept(keep, weights(p)).sum(-1))
            base = np.where(took, sums.astype(np.float64), base)
    if (top_p < 1).any():
        keep = keep & (p >= top_p_cut(where_kept(keep, p), top_p, base))
    return keep


def kth_largest(p: Value, k: Array, wanted: Array) -> Value:
    """[n, 1]: the k-th largest positive value, 0 where there are fewer or none is wanted."""
    found = paddle.take_along_axis(descending(p), column(k.astype(np.int64) - 1, p), 1)
    return where_kept(column(wanted, p) & (found > 0), found)


def top_p_cut(p: Value, top_p: Array, base: Array) -> Value:
    """[n, 1]: the lowest value above which there is less than top_p * base; 0 where top_p is off. Equal
    values share the weight above the first of them."""
    ordered = descending(p)
    mass = weights(ordered)
    above = paddle.cumsum(mass, axis=-1) - mass
    first = paddle.concat(
        [paddle.ones_like(p[:, :1]).astype("bool"), ordered[:, 1:] != ordered[:, :-1]], -1
    )
    bounds = [ceil(float(t) * b) if t < 1 else 0 for t, b in zip(top_p, base, strict=True)]
    inside = first & (above < column(np.array(bounds, np.int64), p)) & (ordered > 0)
    far = paddle.full_like(ordered, float("inf"))
    cut = paddle.where(inside, ordered, far).min(-1, keepdim=True)
    return where_kept(column(top_p < 1, p), cut)


def draw(p: Value, keep: Value, bits: Sequence[int]) -> Value:
    """[n] int64: inverse transform over the kept ids in ascending order; the best if they weigh nothing."""
    running = paddle.cumsum(where_kept(keep, weights(p)), axis=-1)
    totals = host(running[:, -1]).tolist()
    targets = np.array([scaled(b, t) for b, t in zip(bits, totals, strict=True)], np.int64)
    drawn = (running <= column(targets, p)).astype("int64").sum(-1)
    return paddle.where(like(np.array(totals) > 0, p), drawn, best(p))


def sample(
    p: Value, top_k: Array, top_p: Array, min_p: Array, renormalise: bool, bits: Sequence[int]
) -> Value:
    """[n] int64 for probabilities [n, V]; parameters [n] on the host. top_p <= 0 takes the best."""
    if 0 in p.shape:
        return paddle.zeros([p.shape[0]], "int64")
    drawn = draw(p, kept(p, top_k, top_p, min_p, renormalise), bits)
    return paddle.where(like(top_p > 0, p), drawn, best(p))
