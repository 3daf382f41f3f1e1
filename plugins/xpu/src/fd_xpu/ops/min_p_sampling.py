"""min_p_sampling: zero all probabilities below a fraction of the row's maximum."""

from __future__ import annotations

from fd_xpu.call import PaddleKernel
from fd_xpu.compute import Value, check, host
from fd_xpu.framework import paddle


@PaddleKernel
def min_p_sampling(probs: Value, min_p: Value) -> Value:
    """Composed: maximum, product, comparison."""
    share = host(min_p)
    check(
        bool(((share >= 0) & (share <= 1)).all()),
        "min_p_sampling.min_p",
        "numbers in [0, 1]",
        share.tolist(),
    )
    if not probs.size:
        return probs
    pivot = probs.max(-1, keepdim=True) * min_p.reshape([-1, 1])
    return paddle.where(probs >= pivot, probs, paddle.zeros_like(probs))
