"""moe_expert_dispatch: choose experts, copy the tokens' rows into expert order."""

from __future__ import annotations

import numpy as np

from fd_xpu.call import PaddleKernel
from fd_xpu.compute import Value, check, host, like, take_rows
from fd_xpu.framework import paddle
from fd_xpu.routing import check_topk, route

NAME = "moe_expert_dispatch"


@PaddleKernel
def moe_expert_dispatch(
    input: Value,
    gating_output: Value,
    gating_correction_bias: Value | None,
    w4a8_in_scale: Value | None,
    moe_topk: int,
    group_moe: bool,
    moe_quant_type: str,
    topk_only_mode: bool,
) -> tuple[Value, ...]:
    """The choice is made on the device; the order of the rows on the host, from [T, k] ids."""
    plain = moe_quant_type in ("", "none") and w4a8_in_scale is None
    check(plain, f"{NAME}.moe_quant_type", "no quantisation", f"{moe_quant_type!r} or a scale")
    tokens, experts = gating_output.shape
    check(input.size == tokens * input.shape[-1], f"{NAME}.input", f"{tokens} rows", list(input.shape))
    check_topk(NAME, moe_topk, experts, gating_correction_bias)
    grouped = group_moe and not topk_only_mode
    check(not grouped or experts % moe_topk == 0, f"{NAME}.moe_topk", f"a divisor of {experts}", moe_topk)
    groups = moe_topk if grouped else 1
    if not tokens:
        return nothing(input.shape[-1], experts, moe_topk, input.dtype)
    ids, weights = route(gating_output, gating_correction_bias, moe_topk, groups, topk_only_mode)
    flat = host(ids).reshape(-1)
    order = np.argsort(flat, kind="stable")
    row_of = np.empty(order.size, np.int32)
    row_of[order] = np.arange(order.size, dtype=np.int32)
    rows = take_rows(input.reshape([tokens, -1]), like(order // moe_topk, input))
    ends = np.cumsum(np.bincount(flat, minlength=experts))
    places = like(row_of.reshape(tokens, moe_topk).T, input)
    return rows, like(ends, input), places, weights, ids, like(flat[order].astype(np.int32), input)


def nothing(hidden: int, experts: int, k: int, kind: object) -> tuple[Value, ...]:
    ends = paddle.zeros([experts], "int64")
    rows, owners = paddle.zeros([0, hidden], kind), paddle.zeros([0], "int32")
    slots = [paddle.zeros(shape, "int32") for shape in ([k, 0], [0, k], [0, k])]
    return rows, ends, slots[0], slots[1], slots[2], owners
