"""Mixture of experts (specification ops-quant-moe §§5–7)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fd_core import ops
from fd_core.compat.fastdeploy import settings
from fd_core.compat.fastdeploy.arrays import host, like, refuse, zeros
from fd_core.compat.fastdeploy.overload import form


@form("moe_expert_dispatch")
def moe_expert_dispatch(
    input: Any, gating_output: Any, gating_correction_bias: Any, w4a8_in_scale: Any, moe_topk: int,
    group_moe: bool, moe_quant_type: str = "", topk_only_mode: bool = False,
) -> Any:  # fmt: skip
    """`settings.moe_dispatch_results` says how many results come back."""
    results = ops.moe_expert_dispatch(
        input, gating_output, gating_correction_bias, w4a8_in_scale, moe_topk, group_moe, moe_quant_type,
        topk_only_mode,
    )  # fmt: skip
    more = []
    if settings.moe_dispatch_results > 6:
        more.append(zeros(input, (1,), "float32"))
    if settings.moe_dispatch_results > 7:
        counts = np.diff(host(results[1]), prepend=0)
        more.append(like(input, np.array([counts.max(initial=0)], np.int64)))
    return [*results, *more]


def _is_text(name: str) -> Any:
    def check(bound: Mapping[str, Any]) -> bool:
        return isinstance(bound[name], str)

    return check


@form("moe_expert_ffn", when=_is_text("quant_method"))
def _first_ffn(
    permute_input: Any, tokens_expert_prefix_sum: Any, up_gate_proj_weight: Any, down_proj_weight: Any,
    up_gate_proj_bias: Any, up_gate_proj_scale: Any, down_proj_scale: Any, down_proj_in_scale: Any,
    expert_idx_per_token: Any, quant_method: str, used_in_ep_low_latency: bool,
    estimate_total_token_nums: int = -1,
) -> Any:  # fmt: skip
    return ops.moe_expert_ffn(
        permute_input, tokens_expert_prefix_sum, up_gate_proj_weight, down_proj_weight, up_gate_proj_bias,
        up_gate_proj_scale, down_proj_scale, down_proj_in_scale, expert_idx_per_token, quant_method,
        bool(used_in_ep_low_latency),
    )  # fmt: skip


@form("moe_expert_ffn", when=_is_text("quant_method"))
def _second_ffn(
    permute_input: Any, tokens_expert_prefix_sum: Any, up_gate_proj_weight: Any, down_proj_weight: Any,
    up_proj_in_scale: Any, up_gate_proj_bias: Any, up_gate_proj_scale: Any, down_proj_scale: Any,
    down_proj_in_scale: Any, expert_idx_per_token: Any, quant_method: str, used_in_ep_low_latency: bool,
    estimate_total_token_nums: int = -1, hadamard_block_size: int = 128, activation: str = "swiglu",
) -> Any:  # fmt: skip
    if up_proj_in_scale is not None:
        refuse("moe_expert_ffn", "up_proj_in_scale", "a tensor", "pass None: rows are not quantised")
    if activation != "swiglu":
        refuse("moe_expert_ffn", "activation", activation, "use swiglu")
    return _first_ffn(
        permute_input, tokens_expert_prefix_sum, up_gate_proj_weight, down_proj_weight, up_gate_proj_bias,
        up_gate_proj_scale, down_proj_scale, down_proj_in_scale, expert_idx_per_token, quant_method,
        used_in_ep_low_latency,
    )  # fmt: skip


@form("moe_expert_ffn", when=_is_text("quant_method"))
def _third_ffn(
    permute_input: Any, tokens_expert_prefix_sum: Any, up_gate_proj_weight: Any, down_proj_weight: Any,
    up_proj_in_scale: Any, up_gate_proj_bias: Any, up_gate_proj_scale: Any, down_proj_scale: Any,
    down_proj_in_scale: Any, expert_idx_per_token: Any, max_tokens_per_expert: Any, quant_method: str,
    used_in_ep_low_latency: bool, estimate_total_token_nums: int = -1, hadamard_block_size: int = 128,
    activation: str = "swiglu",
) -> Any:  # fmt: skip
    """`max_tokens_per_expert` is a hint and not read."""
    return _second_ffn(
        permute_input, tokens_expert_prefix_sum, up_gate_proj_weight, down_proj_weight, up_proj_in_scale,
        up_gate_proj_bias, up_gate_proj_scale, down_proj_scale, down_proj_in_scale, expert_idx_per_token,
        quant_method, used_in_ep_low_latency, estimate_total_token_nums, hadamard_block_size, activation,
    )  # fmt: skip


@form("tritonmoe_preprocess")
@form("tritonmoe_preprocess_func")
def tritonmoe_preprocess(topk_ids: Any, num_experts: int, GEMM_BLOCK_SIZE_M: int) -> Any:
    return ops.tritonmoe_preprocess(topk_ids, num_experts, GEMM_BLOCK_SIZE_M)
