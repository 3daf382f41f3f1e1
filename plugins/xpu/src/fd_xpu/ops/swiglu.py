"""swiglu: silu(gate) * up."""

from __future__ import annotations

from fd_xpu import fused
from fd_xpu.call import PaddleKernel
from fd_xpu.compute import Value, check, wide
from fd_xpu.framework import paddle


def silu_mul(gate: Value, up: Value) -> Value:
    """in the type given."""
    return gate / (1.0 + paddle.exp(-gate)) * up


@PaddleKernel
def swiglu(x: Value, y: Value | None) -> Value:
    """Fused: Paddle's swiglu. Composed: exponential, quotient and product."""
    check(y is not None or x.shape[-1] % 2 == 0, "swiglu.x", "an even last dimension", x.shape)
    if fused.has("swiglu", x):
        return paddle.nn.functional.swiglu(x, y)
    gate, up = paddle.split(wide(x), 2, axis=-1) if y is None else (wide(x), wide(y))
    return silu_mul(gate, up)
