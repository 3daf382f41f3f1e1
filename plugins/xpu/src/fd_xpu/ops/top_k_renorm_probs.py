"""top_k_renorm_probs: keep the k most probable entries and renormalise."""

from __future__ import annotations

import numpy as np

from fd_xpu.call import PaddleKernel
from fd_xpu.compute import Value, f32, host, wide
from fd_xpu.framework import paddle
from fd_xpu.truncate import column, kth_largest, where_kept


@PaddleKernel
def top_k_renorm_probs(probs: Value, top_k: Value) -> Value:
    """Composed: sort, comparison, sum, quotient."""
    k = host(top_k).reshape(-1)
    cutting = (k > 0) & (k < probs.shape[1])
    if not probs.size or not cutting.any():
        return probs
    cut = kth_largest(where_kept(probs > 0, probs), np.where(cutting, k, 1), cutting)
    keep = (probs > 0) & (probs >= cut)
    total = f32(wide(where_kept(keep, probs)).sum(-1, keepdim=True).clip(min=1e-8))
    total = paddle.where(cut > 0, total, paddle.ones_like(total))
    return paddle.where(column(cutting, probs), where_kept(keep, probs) / total, probs)
