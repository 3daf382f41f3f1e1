"""temperature_softmax: logits to probabilities."""

from __future__ import annotations

import numpy as np

from fd_xpu.call import PaddleKernel
from fd_xpu.compute import Value, like, wide
from fd_xpu.framework import paddle
from fd_xpu.truncate import best


@PaddleKernel
def temperature_softmax(logits: Value, temperature: Value) -> Value:
    """Composed; rows that have no softmax get their one at the best id."""
    return probabilities(logits, temperature)


def probabilities(logits: Value, temperature: Value) -> Value:
    if not logits.size:
        return logits
    x = wide(logits)
    x = paddle.where(paddle.isnan(x), paddle.full_like(x, float("-inf")), x)
    top, cold = x.max(-1, keepdim=True), temperature.unsqueeze(1) < 2.0**-128
    hot = cold | paddle.isinf(top)
    divisor = paddle.where(hot, paddle.ones_like(top), temperature.unsqueeze(1).astype(x.dtype))
    grown = paddle.exp((x - top) / divisor)
    soft = grown / grown.sum(-1, keepdim=True)
    ids = like(np.arange(x.shape[1]), x).unsqueeze(0)
    one = (ids == best(logits).unsqueeze(1)).astype(x.dtype)
    return paddle.where(hot, one, soft)
