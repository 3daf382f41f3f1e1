"""weight_only_linear: a dense layer over the codes of weight_quantize."""

from __future__ import annotations

from fd_xpu.call import PaddleKernel, rounded
from fd_xpu.codes import order
from fd_xpu.compute import Value, check, f32, matmul

NAME = "weight_only_linear"


@PaddleKernel
def weight_only_linear(
    x: Value,
    weight: Value,
    bias: Value | None,
    weight_scale: Value | None,
    weight_dtype: str,
    arch: int,
    group_size: int,
) -> Value:
    """Composed: the weight is widened, then multiplied. The codes lie in the order that the op's contract
    names, which Paddle's operators of this name do not read on every place; the methods wint8 and wint4
    pack with Paddle for Paddle."""
    check(weight_scale is not None, f"{NAME}.weight_scale", "the scales of weight_quantize", "None")
    assert weight_scale is not None
    plan = order(NAME, f"weight_only_{weight_dtype}", arch, group_size, x.shape[-1], weight_scale.shape[-1])
    wanted = plan.columns * plan.depth // (2 if plan.int4 else 1)
    check(weight.size == wanted, f"{NAME}.weight", f"{wanted} bytes", weight.size)
    groups = 1 if group_size < 0 else -(-plan.depth // group_size)
    check(
        weight_scale.size == groups * plan.columns,
        f"{NAME}.weight_scale",
        f"{groups} groups",
        weight_scale.size,
    )
    if bias is not None:
        check(bias.size == plan.columns, f"{NAME}.bias", f"{plan.columns} numbers", bias.size)
    wide = rounded(plan.unpacked(weight) * plan.spread(weight_scale), x.dtype)
    total = f32(matmul(x.reshape([-1, plan.depth]), wide)).reshape([*x.shape[:-1], plan.columns])
    return total if bias is None else total + f32(bias)
