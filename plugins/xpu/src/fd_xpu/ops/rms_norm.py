"""rms_norm: root-mean-square normalisation over the last dimension."""

from __future__ import annotations

from fd_xpu import fused
from fd_xpu.call import PaddleKernel
from fd_xpu.compute import Value, packed, wide
from fd_xpu.framework import paddle


def normed(x: Value, weight: Value, eps: float) -> Value:
    """Over the last dimension, for any rank. Fused where the build has the operator for both types."""
    if x.dtype == weight.dtype and fused.has("fused_rms_norm_quant", x):
        operator = paddle.incubate.nn.functional.fused_rms_norm
        return operator(packed(x), packed(weight), None, eps, x.ndim - 1)[0]
    x = wide(x)
    scale = paddle.rsqrt((x * x).mean(-1, keepdim=True) + eps)
    return x * scale * wide(weight)


@PaddleKernel
def rms_norm(x: Value, weight: Value, eps: float) -> Value:
    """Fused: fused_rms_norm. Composed: mean of squares, rsqrt, two products."""
    return normed(x, weight, eps)
