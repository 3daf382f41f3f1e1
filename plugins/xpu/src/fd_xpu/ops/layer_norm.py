"""layer_norm: normalisation by mean and variance over the last dimension."""

from __future__ import annotations

from fd_xpu.call import PaddleKernel
from fd_xpu.compute import Value, wide
from fd_xpu.framework import paddle


@PaddleKernel
def layer_norm(x: Value, weight: Value, bias: Value | None, eps: float) -> Value:
    """Composed, in two passes as the contract says: the variance is that of the centred values."""
    x = wide(x)
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / paddle.sqrt((centred * centred).mean(-1, keepdim=True) + eps) * wide(weight)
    return scaled if bias is None else scaled + wide(bias)
