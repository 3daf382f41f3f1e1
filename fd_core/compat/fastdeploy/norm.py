"""Norms, activations and rotary embedding (specifications ops-quant-moe §9, ops-attention-kv §2)."""

from __future__ import annotations

from typing import Any

from fd_core import ops
from fd_core.compat.fastdeploy.arrays import refuse
from fd_core.compat.fastdeploy.overload import form

#: Tokens that FastDeploy's rotary operator takes: its callers rely on the error.
_MOST_TOKENS = 65535


@form("rmsnorm")
def rmsnorm(x: Any, weight: Any, epsilon: float, out: Any = None, enable_pdl: bool = False) -> Any:
    return ops.rms_norm(x, weight, epsilon, out)


@form("fused_add_rmsnorm")
def fused_add_rmsnorm(x: Any, residual: Any, weight: Any, epsilon: float, enable_pdl: bool = False) -> Any:
    """Both in place: residual <- x + residual, x <- norm(residual)."""
    return ops.fused_add_rmsnorm(x, residual, weight, epsilon)


@form("fused_rms_norm")
def fused_rms_norm(
    x: Any, norm_weight: Any, norm_bias: Any, epsilon: float, begin_norm_axis: int, bias: Any = None,
    residual: Any = None, quant_scale: float = -1, quant_round_type: int = 0, quant_max_bound: float = 0,
    quant_min_bound: float = 0,
) -> Any:  # fmt: skip
    """(out, residual_out), in memory of their own; residual_out is x where no residual is given."""
    fix = "use rmsnorm or fused_add_rmsnorm, and an operator of its own for the rest"
    for name, value in (("norm_bias", norm_bias), ("bias", bias)):
        if value is not None:
            refuse("fused_rms_norm", name, "a tensor", fix)
    if quant_scale > 0:
        refuse("fused_rms_norm", "quant_scale", quant_scale, fix)
    rows = _rows(x, begin_norm_axis)
    if residual is None:
        return ops.rms_norm(rows, norm_weight, epsilon).reshape(list(x.shape)), x
    total, out = copy_of(_rows(residual, begin_norm_axis)), copy_of(rows)
    ops.fused_add_rmsnorm(out, total, norm_weight, epsilon)
    return out.reshape(list(x.shape)), total.reshape(list(x.shape))


def _rows(x: Any, axis: int) -> Any:
    size = 1
    for n in x.shape[axis:]:
        size *= int(n)
    return x.reshape([-1, size])


def copy_of(tensor: Any) -> Any:
    return tensor.clone() if hasattr(tensor, "clone") else tensor.copy()


@form("gelu_tanh")
def gelu_tanh(input: Any) -> Any:
    return ops.gelu_tanh(input)


@form("swigluoai")
def swigluoai(fc1_out_tensor: Any, alpha: float, limit: float, type: str) -> Any:
    return ops.swigluoai(fc1_out_tensor, alpha, limit, type)


@form("swiglu")
def swiglu(x: Any, y: Any = None) -> Any:
    return ops.swiglu(x, y)


@form("group_swiglu_with_masked")
def group_swiglu_with_masked(input: Any, token_nums_per_expert: Any) -> Any:
    return ops.group_swiglu_with_masked(input, token_nums_per_expert)


@form("qk_rmsnorm_fused")
def qk_rmsnorm_fused(
    qkv_out: Any,
    q_norm_weight: Any,
    k_norm_weight: Any,
    eps: float,
    q_size: int,
    kv_size: int,
    head_dim: int,
) -> Any:
    """In place; returns `qkv_out`."""
    return ops.qk_rmsnorm_fused(qkv_out, q_norm_weight, k_norm_weight, eps, q_size, kv_size, head_dim)


@form("fused_rotary_position_encoding")
def fused_rotary_position_encoding(
    query: Any, key: Any, position_ids: Any, cos_sin_cache: Any, head_size: int, is_neox: bool
) -> Any:
    """In place. ValueError above 65535 tokens: the op itself has no limit."""
    tokens = int(query.shape[0])
    if tokens > _MOST_TOKENS:
        fix = "call fd_core.ops.fused_rotary_position_encoding, or in parts"
        want = f"want at most {_MOST_TOKENS} tokens, have {tokens}"
        raise ValueError(f"fused_rotary_position_encoding.query: {want}; fix: {fix}")
    return ops.fused_rotary_position_encoding(query, key, position_ids, cos_sin_cache, head_size, is_neox)
