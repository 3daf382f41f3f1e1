"""moe_topk_select: softmax scores and the best experts of each token."""

from __future__ import annotations

from fd_xpu.call import PaddleKernel
from fd_xpu.compute import Value, wide
from fd_xpu.framework import paddle
from fd_xpu.routing import check_topk, route


@PaddleKernel
def moe_topk_select(
    gating_logits: Value,
    bias: Value | None,
    moe_topk: int,
    apply_norm_weight: bool,
    enable_softmax_top_k_fused: bool,
) -> tuple[Value, Value]:
    """Composed: stable sorts, so that ties go to the lower expert."""
    logits = gating_logits.reshape([-1, gating_logits.shape[-1]])
    check_topk("moe_topk_select", moe_topk, logits.shape[1], bias)
    if not logits.shape[0]:
        return paddle.zeros([0, moe_topk], "int64"), paddle.zeros([0, moe_topk], "float32")
    ids, weights = route(logits, bias, moe_topk, 1, False)
    return ids, normalised(weights) if apply_norm_weight else weights


def normalised(weights: Value) -> Value:
    """Rows divided by their sums; a row of zeros stays."""
    weights = wide(weights)
    total = weights.sum(-1, keepdim=True)
    safe = paddle.where(total == 0, paddle.ones_like(total), total)
    return paddle.where(total == 0, paddle.zeros_like(weights), weights / safe)
