"""moe_expert_dispatch: choose experts, copy the tokens' rows into expert order."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from fd_core.api.dtype import FLOATS, float32, int32, int64
from fd_core.api.tensor import TensorSpec
from fd_core.ops.moe.moe_topk_select import best, check, softmax
from fd_core.ops.schema import Array, Case, In, OptIn, Out, Tolerance, op

TOLERANCE = Tolerance(
    "weights: softmax in float32, as moe_topk_select; rows and indices are moved, but one type carries one "
    "tolerance: float32 rows of these cases are far apart compared with it",
    {"float32": (1e-5, 1e-7)},
)


def _case(
    shape: tuple[int, ...],
    experts: int,
    k: int,
    *,
    group: bool = False,
    only: bool = False,
    bias: bool = False,
) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        scores = rng.random((prod(shape[:-1]), experts), np.float32)
        return {
            "input": rng.standard_normal(shape, np.float32).astype(dtype),
            "gating_output": scores,
            "gating_correction_bias": rng.random(experts, np.float32) / 10 if bias else None,
            "w4a8_in_scale": None,
            "moe_topk": k,
            "group_moe": group,
            "moe_quant_type": "",
            "topk_only_mode": only,
        }

    name = "x".join(map(str, shape)) + f"-e{experts}-k{k}" + "-group" * group + "-only" * only
    return Case(name + "-bias" * bias, args, FLOATS)


CASES = [
    _case((0, 16), 4, 2),
    _case((1, 8), 1, 1),
    _case((33, 17), 16, 4, bias=True),
    _case((2, 9, 64), 8, 2, only=True),
    _case((20, 32), 12, 3, group=True),
    _case((20, 32), 12, 3, group=True, bias=True),
    _case((7, 24), 300, 8, only=True, bias=True),
]


def _outputs(input: TensorSpec, gating_output: TensorSpec, moe_topk: int, **_: Any) -> list[TensorSpec]:
    tokens, experts = gating_output.shape
    slots = tokens * moe_topk
    return [
        TensorSpec((slots, input.shape[-1]), input.dtype),
        TensorSpec((experts,), int64),
        TensorSpec((moe_topk, tokens), int32),
        TensorSpec((tokens, moe_topk), float32),
        TensorSpec((tokens, moe_topk), int32),
        TensorSpec((slots,), int32),
    ]


def route(scores: Array, bias: Array | None, k: int, grouped: bool, raw: bool) -> tuple[Array, Array]:
    """(experts, weights), each [T, k]."""
    tokens, experts = scores.shape
    runs = scores.reshape(tokens * k, experts // k) if grouped else scores
    p = runs if raw else softmax(runs)
    shift = 0 if bias is None else np.tile(bias.reshape(k, -1), (tokens, 1)) if grouped else bias
    keys = runs if bias is None else p + shift
    ids = best(keys, 1 if grouped else k)
    weights = np.take_along_axis(p, ids, -1).reshape(tokens, k)
    first = np.arange(k) * (experts // k) if grouped else 0
    return ids.reshape(tokens, k) + first, weights


@op(family="moe", infer=_outputs, cases=CASES, tolerance=TOLERANCE)
def moe_expert_dispatch(
    input: In,
    gating_output: In,
    gating_correction_bias: OptIn,
    w4a8_in_scale: OptIn,
    moe_topk: int,
    group_moe: bool,
    moe_quant_type: str,
    topk_only_mode: bool,
    permute_input: Out,
    tokens_expert_prefix_sum: Out,
    permute_indices_per_token: Out,
    topk_weight: Out,
    topk_idx: Out,
    expert_idx_per_token: Out,
) -> None:
    """Route each token to k experts and copy its row once per expert, rows in expert order.

    input [T, H] or [B, S, H] float32 | bfloat16 | float16; gating_output [T, E] float32: logits, or the
    scores themselves with `topk_only_mode`; gating_correction_bias [E] float32 or None, for the choice
    alone. `group_moe`: softmax inside each of k runs of E / k experts, slot j takes the best of run j
    (ignored with `topk_only_mode`). Choice and ties as moe_topk_select; weights are not normalised.

    Rows are sorted by expert, stable in (token, slot): permute_input [T * k, H];
    tokens_expert_prefix_sum [E] int64 inclusive counts; permute_indices_per_token [k, T] int32 the row of
    (slot, token); topk_weight [T, k] float32; topk_idx [T, k] int32; expert_idx_per_token [T * k] int32
    the expert of each row. Raises ValueError for k as moe_topk_select does, for E not divisible by k
    with `group_moe`, for a `moe_quant_type` other than "" or "none", and for a `w4a8_in_scale`: rows are
    copied, not quantised. Source: specification ops-quant-moe §6 (first version, six outputs).
    """
    if moe_quant_type not in ("", "none") or w4a8_in_scale is not None:
        raise ValueError(f"moe_expert_dispatch: want no quantisation, have {moe_quant_type!r} or a scale")
    tokens, experts = gating_output.shape
    check("moe_expert_dispatch", moe_topk, experts, gating_correction_bias)
    grouped = group_moe and not topk_only_mode
    if grouped and experts % moe_topk:
        raise ValueError(f"moe_expert_dispatch.moe_topk: want a divisor of {experts}, have {moe_topk}")
    ids, weights = route(gating_output, gating_correction_bias, moe_topk, grouped, topk_only_mode)
    order = np.argsort(ids.reshape(-1), kind="stable")
    row_of = np.empty(order.size, np.int32)
    row_of[order] = np.arange(order.size)
    permute_input[...] = input.reshape(tokens, -1)[order // moe_topk] if tokens else 0
    tokens_expert_prefix_sum[...] = np.cumsum(np.bincount(ids.reshape(-1), minlength=experts))
    permute_indices_per_token[...] = row_of.reshape(tokens, moe_topk).T
    topk_weight[...] = weights
    topk_idx[...] = ids
    expert_idx_per_token[...] = ids.reshape(-1)[order]
