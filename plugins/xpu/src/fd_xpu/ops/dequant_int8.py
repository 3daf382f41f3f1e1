"""dequant_int8: integer sums to floats."""

from __future__ import annotations

from fd_xpu.call import PaddleKernel
from fd_xpu.compute import Value, check, f32

FLOATS = ("float32", "bfloat16", "float16")


@PaddleKernel
def dequant_int8(input: Value, out_scale: Value, dtype: str) -> Value:
    """Composed: cast and product."""
    check(dtype in FLOATS, "dequant_int8.dtype", " | ".join(FLOATS), dtype)
    return (f32(input) * out_scale).astype(dtype)
