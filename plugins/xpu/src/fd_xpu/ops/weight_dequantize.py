"""weight_dequantize: the inverse of weight_quantize."""

from __future__ import annotations

from fd_xpu.call import PaddleKernel
from fd_xpu.codes import order
from fd_xpu.compute import Value, check


@PaddleKernel
def weight_dequantize(x: Value, scale: Value, algo: str, out_dtype: str, group_size: int) -> Value:
    """Composed: one gather brings the codes into order."""
    plan = order("weight_dequantize", algo, 0, group_size, x.shape[1], scale.shape[-1])
    wanted = plan.columns * plan.depth // (2 if plan.int4 else 1)
    check(x.size == wanted, "weight_dequantize.x", f"{wanted} bytes", x.size)
    groups = 1 if group_size < 0 else -(-plan.depth // group_size)
    check(
        scale.size == groups * plan.columns,
        "weight_dequantize.scale",
        f"{groups} groups",
        list(scale.shape),
    )
    return plan.unpacked(x) * plan.spread(scale)
