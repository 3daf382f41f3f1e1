"""moe_expert_reduce: the experts' rows of a token, weighted and summed."""

from __future__ import annotations

from fd_xpu.call import PaddleKernel
from fd_xpu.compute import Value, check, check_range, f32, take_rows
from fd_xpu.framework import paddle

NAME = "moe_expert_reduce"


@PaddleKernel
def moe_expert_reduce(
    ffn_out: Value,
    top_k_weight: Value,
    permute_indices_per_token: Value,
    top_k_indices: Value,
    down_proj_bias: Value | None,
    norm_topk_prob: bool,
    routed_scaling_factor: float,
) -> Value:
    """Slot by slot, so that a token's sum has one order."""
    tokens, k = top_k_indices.shape
    check(ffn_out.shape[0] == tokens * k, f"{NAME}.ffn_out", f"{tokens * k} rows", ffn_out.shape[0])
    places = check_range(f"{NAME}.permute_indices_per_token", permute_indices_per_token, -1, tokens * k)
    experts = top_k_indices
    if down_proj_bias is not None:
        experts = check_range(f"{NAME}.top_k_indices", top_k_indices, 0, down_proj_bias.shape[0])
    total = paddle.zeros([tokens, ffn_out.shape[1]], "float32")
    for j in range(k if tokens else 0):
        rows = places[j]
        term = f32(take_rows(ffn_out, rows.clip(min=0)))
        if down_proj_bias is not None:
            term = term + f32(take_rows(down_proj_bias, experts[:, j]))
        term = top_k_weight[:, j : j + 1] * term
        total = total + paddle.where((rows < 0).unsqueeze(1), paddle.zeros_like(term), term)
    if norm_topk_prob and tokens:
        weight = top_k_weight.sum(-1, keepdim=True)
        safe = paddle.where(weight == 0, paddle.ones_like(weight), weight)
        total = paddle.where(weight == 0, paddle.zeros_like(total), total / safe)
    return total * routed_scaling_factor
