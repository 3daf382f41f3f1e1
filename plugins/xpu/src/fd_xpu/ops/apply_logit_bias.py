"""apply_logit_bias: add a value to chosen logits of each row, in place."""

from __future__ import annotations

import numpy as np

from fd_xpu.call import PaddleKernel, rounded
from fd_xpu.compute import Array, Value, f32, flat, host, like
from fd_xpu.framework import paddle


@PaddleKernel
def apply_logit_bias(logits: Value, offsets: Value, ids: Value, values: Value) -> Value:
    """A gather, a sum and a scatter; ids that a row names again wait for the next round."""
    rows, vocab = logits.shape
    starts, listed, added = host(offsets), host(ids), host(values)
    row_of = np.repeat(np.arange(rows), np.diff(starts))
    places = np.where((listed >= 0) & (listed < vocab), row_of * vocab + listed, -1)
    line = flat(f32(logits)).clone()
    for chosen in rounds(places):
        where = like(places[chosen], logits)
        sums = paddle.gather(line, where) + like(added[chosen], logits)
        line = paddle.scatter(line, where, f32(rounded(sums, logits.dtype)))
    return line.reshape([rows, vocab])


def rounds(places: Array) -> list[Array]:
    """Positions of each place's first, second ... appearance; negative places never."""
    left, found = np.flatnonzero(places >= 0), []
    while left.size:
        first = left[np.sort(np.unique(places[left], return_index=True)[1])]
        found.append(first)
        left = np.setdiff1d(left, first)
    return found
