"""silu: x * sigmoid(x)."""

from __future__ import annotations

from fd_xpu.call import PaddleKernel
from fd_xpu.compute import Value, wide
from fd_xpu.framework import paddle


@PaddleKernel
def silu(x: Value) -> Value:
    """Composed: exponential and quotient."""
    x = wide(x)
    return x / (1.0 + paddle.exp(-x))
