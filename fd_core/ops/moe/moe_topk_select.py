"""moe_topk_select: softmax scores and the best experts of each token."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from fd_core.api.dtype import float32, int64
from fd_core.api.tensor import TensorSpec
from fd_core.ops.schema import Array, Case, In, OptIn, Out, Tolerance, op

MAX_TOPK = 256

TOLERANCE = Tolerance(
    "exp within 2 ulp and a float32 sum of positive terms, any order: relative error below 1e-5; ids exact",
    {"float32": (1e-5, 1e-7)},
)


def softmax(logits: Array) -> Array:
    """Over the last dimension, in float32."""
    with np.errstate(invalid="ignore"):
        grown = np.exp(logits - logits.max(-1, keepdims=True))
        return np.asarray(grown / grown.sum(-1, keepdims=True, dtype=np.float32), np.float32)


def best(keys: Array, k: int) -> Array:
    """Indices of the k largest keys of each row, descending; ties to the lower index, NaN last."""
    return np.asarray(np.argsort(-keys, axis=-1, kind="stable")[:, :k])


def check(op: str, k: int, experts: int, bias: Array | None) -> None:
    if not 1 <= k <= min(experts, MAX_TOPK):
        raise ValueError(f"{op}.moe_topk: want 1 .. {min(experts, MAX_TOPK)}, have {k}")
    if bias is not None and bias.size != experts:
        raise ValueError(f"{op}: want a bias of {experts} numbers, have {list(bias.shape)}")


def normalise(weights: Array) -> Array:
    """Rows divided by their sums; a row of zeros stays."""
    total = weights.sum(-1, keepdims=True, dtype=np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(total == 0, np.float32(0), weights / total))


def _case(tokens: int, experts: int, k: int, *, bias: bool = False, norm: bool = False) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        shift = rng.random((1, experts), np.float32) / 10 if bias else None
        logits = rng.random((tokens, experts), np.float32)
        flags = {"apply_norm_weight": norm, "enable_softmax_top_k_fused": not norm}
        return {"gating_logits": logits, "bias": shift, "moe_topk": k, **flags}

    return Case(f"{tokens}x{experts}-top{k}" + "-bias" * bias + "-norm" * norm, args, (float32,))


CASES = [_case(0, 8, 2), _case(1, 1, 1, norm=True), _case(5, 7, 7, norm=True), _case(3, 300, 256)]
CASES += [_case(1500, 128, 8, bias=b, norm=n) for b in (False, True) for n in (False, True)]


def _outputs(gating_logits: TensorSpec, moe_topk: int, **_: Any) -> list[TensorSpec]:
    rows = prod(gating_logits.shape[:-1])
    return [TensorSpec((rows, moe_topk), int64), TensorSpec((rows, moe_topk), float32)]


@op(
    family="moe",
    infer=_outputs,
    cases=CASES,
    tolerance=TOLERANCE,
    rows=("gating_logits", "topk_ids", "topk_weights"),
)
def moe_topk_select(
    gating_logits: In,
    bias: OptIn,
    moe_topk: int,
    apply_norm_weight: bool,
    enable_softmax_top_k_fused: bool,
    topk_ids: Out,
    topk_weights: Out,
) -> None:
    """The `moe_topk` experts with the largest softmax(logits) + bias, weighted without the bias.

    gating_logits [T, E] or [B, S, E] float32; bias E numbers float32 ([E] or [1, E]) or None;
    topk_ids [T, k] int64, topk_weights [T, k] float32, best first; equal keys go to the lower expert,
    NaN after all numbers. Without a bias the logits themselves are compared, which orders as the
    probabilities do but has no ties from their rounding. `apply_norm_weight` divides the k weights by
    their sum (a sum of zero leaves zeros). `enable_softmax_top_k_fused` names another kernel elsewhere and
    changes nothing. Raises ValueError for k outside 1 .. min(E, 256) and a bias of another length.
    Source: specification ops-quant-moe §5.
    """
    logits = gating_logits.reshape(-1, gating_logits.shape[-1])
    check("moe_topk_select", moe_topk, logits.shape[1], bias)
    p = softmax(logits)
    ids = best(logits if bias is None else p + bias.reshape(-1), moe_topk)
    weights = np.take_along_axis(p, ids, -1)
    topk_ids[...] = ids
    topk_weights[...] = normalise(weights) if apply_norm_weight else weights
