"""gelu_tanh_and_mul: gelu_tanh(gate) * up."""

from __future__ import annotations

from fd_xpu.call import PaddleKernel
from fd_xpu.compute import Value, wide
from fd_xpu.framework import paddle
from fd_xpu.ops.gelu_tanh import gelu


@PaddleKernel
def gelu_tanh_and_mul(x: Value) -> Value:
    """Composed."""
    gate, up = paddle.split(wide(x), 2, axis=-1)
    return gelu(gate) * up
