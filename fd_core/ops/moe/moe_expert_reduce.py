"""moe_expert_reduce: the experts' rows of a token, weighted and summed."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.dtype import FLOATS
from fd_core.api.tensor import TensorSpec
from fd_core.ops.checks import DataError
from fd_core.ops.schema import Case, In, OptIn, Out, Tolerance, op

TOLERANCE = Tolerance(
    "a float32 sum of at most 8 terms in slot order, with or without fused steps: a few ulp of the terms "
    "(below 4, so 1e-6 absolute); one rounding to the output type",
    {"float32": (4e-6, 2e-6), "bfloat16": (2**-7, 2e-6), "float16": (2**-10, 2e-6)},
)


def _case(
    tokens: int, k: int, hidden: int, *, bias: bool = False, norm: bool = False, absent: bool = False
) -> Case:
    experts = 5

    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        rows = rng.permutation(tokens * k).reshape(k, tokens).astype(np.int32)
        if absent:
            rows[0, ::2] = -1
        shift = rng.standard_normal((experts, hidden), np.float32).astype(dtype) if bias else None
        return {
            "ffn_out": rng.standard_normal((tokens * k, hidden), np.float32).astype(dtype),
            "top_k_weight": rng.random((tokens, k), np.float32),
            "permute_indices_per_token": rows,
            "top_k_indices": rng.integers(0, experts, (tokens, k), np.int32),
            "down_proj_bias": shift,
            "norm_topk_prob": norm,
            "routed_scaling_factor": 2.5 if norm else 1.0,
        }

    return Case(
        f"{tokens}x{k}x{hidden}" + "-bias" * bias + "-norm" * norm + "-absent" * absent, args, FLOATS
    )


CASES = [
    _case(0, 2, 8),
    _case(1, 1, 1),
    _case(7, 4, 33, bias=True),
    _case(9, 8, 64, norm=True),
    _case(6, 3, 20, bias=True, norm=True, absent=True),
]


def _output(ffn_out: TensorSpec, top_k_indices: TensorSpec, **_: Any) -> list[TensorSpec]:
    return [TensorSpec((top_k_indices.shape[0], ffn_out.shape[1]), ffn_out.dtype)]


@op(family="moe", infer=_output, cases=CASES, tolerance=TOLERANCE)
def moe_expert_reduce(
    ffn_out: In,
    top_k_weight: In,
    permute_indices_per_token: In,
    top_k_indices: In,
    down_proj_bias: OptIn,
    norm_topk_prob: bool,
    routed_scaling_factor: float,
    out: Out,
) -> None:
    """out[t] = scale * sum_j w[t, j] * (ffn_out[row(j, t)] + bias[e(t, j)]), in float32.

    ffn_out [T * k, H] float32 | bfloat16 | float16; top_k_weight [T, k] float32;
    permute_indices_per_token [k, T] int32, -1 = the slot contributes nothing; top_k_indices [T, k]
    int32; down_proj_bias [E, H] of ffn_out's type or None; out [T, H]. `norm_topk_prob` divides by the
    sum of all k weights, absent slots included; a sum of zero gives zeros. Any H. Raises ValueError for
    indices outside their range. Source: specification ops-quant-moe §6.
    """
    tokens, k = top_k_indices.shape
    rows = permute_indices_per_token.T
    if rows.size and not (rows.min() >= -1 and rows.max() < tokens * k):
        raise DataError(f"moe_expert_reduce.permute_indices_per_token: want -1 .. {tokens * k - 1}")
    total = np.zeros(out.shape, np.float32)
    for j in range(k):
        term = ffn_out[np.maximum(rows[:, j], 0)].astype(np.float32) if tokens else total
        if down_proj_bias is not None:
            term = term + down_proj_bias[top_k_indices[:, j]].astype(np.float32)
        total += np.where(rows[:, j, None] < 0, np.float32(0), top_k_weight[:, j, None] * term)
    if norm_topk_prob:
        weight = top_k_weight.sum(-1, keepdims=True, dtype=np.float32)
        total = np.divide(total, weight, out=np.zeros_like(total), where=weight != 0)
    out[...] = (total * np.float32(routed_scaling_factor)).astype(out.dtype)
