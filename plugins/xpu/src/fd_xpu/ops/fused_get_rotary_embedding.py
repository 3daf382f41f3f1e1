"""fused_get_rotary_embedding: cos and sin tables of given positions, base 10000."""

from __future__ import annotations

import numpy as np

from fd_xpu.call import PaddleKernel
from fd_xpu.compute import Value, check, host, like

NAME = "fused_get_rotary_embedding"


@PaddleKernel
def fused_get_rotary_embedding(
    input_ids: Value, position_ids: Value, head_dim_shape_tensor: Value, prompt_num: int
) -> Value:
    """Made on the host: angles need float64, which an XPU does not multiply."""
    length, available = input_ids.shape[1], position_ids.shape[1]
    dim = head_dim_shape_tensor.shape[0]
    check(dim % 2 == 0, f"{NAME}.head_dim_shape_tensor", "an even length", dim)
    fits = 0 <= prompt_num <= available - length
    check(fits, f"{NAME}.position_ids", f"at least {length} + {prompt_num} columns", available)
    frequency = 10000.0 ** (-np.arange(0, dim, 2) / max(dim, 1))
    positions = host(position_ids)[:, prompt_num : prompt_num + length].astype(np.float64)
    angle = np.repeat(positions[..., None] * frequency, 2, axis=-1)
    both = np.stack([np.cos(angle), np.sin(angle)]).astype(np.float32)
    return like(both[:, :, None], position_ids)
