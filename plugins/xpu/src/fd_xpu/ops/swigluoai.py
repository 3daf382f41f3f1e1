"""swigluoai: the clamped gated units of GPT-OSS."""

from __future__ import annotations

from fd_xpu.call import PaddleKernel
from fd_xpu.compute import Value, check, wide
from fd_xpu.framework import paddle


@PaddleKernel
def swigluoai(x: Value, alpha: float, limit: float, type: str) -> Value:
    """Composed."""
    check(limit >= 0, "swigluoai.limit", ">= 0", limit)
    x = wide(x)
    if type == "interleave":
        gate, up = x[:, ::2].clip(max=limit), x[:, 1::2].clip(-limit, limit)
        return (up + 1.0) * gate * paddle.nn.functional.sigmoid(alpha * gate)
    gate, up = paddle.split(x, 2, axis=-1)
    return up * gate * paddle.nn.functional.sigmoid((alpha * gate).clip(-limit, limit))
