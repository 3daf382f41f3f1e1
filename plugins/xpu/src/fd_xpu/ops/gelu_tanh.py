"""gelu_tanh: the tanh form of GELU."""

from __future__ import annotations

from fd_xpu.call import PaddleKernel
from fd_xpu.compute import Value, wide
from fd_xpu.framework import paddle


def gelu(x: Value) -> Value:
    """in the type given. (1 + tanh z) / 2 is sigmoid(2 z), which loses nothing where tanh nears -1."""
    inner = 1.5957691216057308 * (x + 0.044715 * x * x * x)
    return x / (1.0 + paddle.exp(-inner))


@PaddleKernel
def gelu_tanh(x: Value) -> Value:
    """Composed."""
    return gelu(wide(x))
