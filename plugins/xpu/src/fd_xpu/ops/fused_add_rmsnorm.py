"""fused_add_rmsnorm: residual addition and RMS norm, both in place."""

from __future__ import annotations

from fd_xpu.call import PaddleKernel
from fd_xpu.compute import Value, f32
from fd_xpu.ops.rms_norm import normed


@PaddleKernel
def fused_add_rmsnorm(x: Value, residual: Value, weight: Value, eps: float) -> tuple[Value, Value]:
    """The sum is rounded to its type before it is normed, as the contract says."""
    total = (f32(x) + f32(residual)).astype(x.dtype)
    return normed(total, weight, eps), total
