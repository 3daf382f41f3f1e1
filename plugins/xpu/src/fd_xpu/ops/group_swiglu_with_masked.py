"""group_swiglu_with_masked: swiglu of the valid rows of every expert's buffer."""

from __future__ import annotations

import numpy as np

from fd_xpu.call import PaddleKernel
from fd_xpu.compute import Value, check_range, like, wide
from fd_xpu.framework import paddle
from fd_xpu.ops.swiglu import silu_mul


@PaddleKernel
def group_swiglu_with_masked(x: Value, token_nums_per_expert: Value) -> Value:
    """Composed; rows behind an expert's count are 0 whatever they hold."""
    capacity = x.shape[1]
    name = "group_swiglu_with_masked.token_nums_per_expert"
    counts = check_range(name, token_nums_per_expert, 0, capacity + 1)
    gate, up = paddle.split(wide(x), 2, axis=-1)
    row = like(np.arange(capacity), x).astype(counts.dtype)
    valid = row.unsqueeze(0) < counts.unsqueeze(1)
    product = silu_mul(gate, up)
    return paddle.where(valid.unsqueeze(-1), product, paddle.zeros_like(product))
