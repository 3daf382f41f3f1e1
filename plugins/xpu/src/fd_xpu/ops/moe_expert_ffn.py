"""moe_expert_ffn: each expert's gated feed-forward over its rows."""

from __future__ import annotations

from fd_xpu.call import PaddleKernel, rounded
from fd_xpu.compute import Array, Value, check, f32, host, matmul, wide
from fd_xpu.framework import paddle
from fd_xpu.ops.swiglu import silu_mul

NAME = "moe_expert_ffn"
PLAIN = ("none", "w16a16")


@PaddleKernel
def moe_expert_ffn(
    permute_input: Value,
    tokens_expert_prefix_sum: Value,
    up_gate_proj_weight: Value,
    down_proj_weight: Value,
    up_gate_proj_bias: Value | None,
    up_gate_proj_scale: Value | None,
    down_proj_scale: Value | None,
    down_proj_in_scale: Value | None,
    expert_idx_per_token: Value | None,
    quant_method: str,
    used_in_ep_low_latency: bool,
) -> Value:
    """Expert by expert: two products each, of the experts that have rows."""
    check(quant_method in PLAIN, f"{NAME}.quant_method", f"one of {PLAIN}", repr(quant_method))
    given = sum(s is not None for s in (up_gate_proj_scale, down_proj_scale, down_proj_in_scale))
    check(not given, f"{NAME}.up_gate_proj_scale", f"no scales with {quant_method!r}", given)
    x, low = permute_input, used_in_ep_low_latency
    check((x.ndim == 3) == low, f"{NAME}.permute_input", "rank 2, or 3 per expert", x.ndim)
    spans = row_spans(host(tokens_expert_prefix_sum), x.shape[-2], low)
    weights = (up_gate_proj_weight, down_proj_weight, up_gate_proj_bias)
    if not low:
        return every_expert(x, spans, *weights)
    parts = [every_expert(x[e], [(0, 0)] * e + [span], *weights) for e, span in enumerate(spans)]
    return paddle.stack(parts) if parts else x


def every_expert(
    x: Value, spans: list[tuple[int, int]], up: Value, down: Value, bias: Value | None
) -> Value:
    """x [R, H]: the rows of each span through its expert, zeros behind the last."""
    parts = []
    for expert, (first, last) in enumerate(spans):
        if last > first:
            shift = None if bias is None else bias[expert].reshape([-1])
            parts.append(feed_forward(x[first:last], up[expert], down[expert], shift))
    spare = x.shape[0] - sum(part.shape[0] for part in parts)
    return paddle.concat([*parts, paddle.zeros([spare, x.shape[1]], x.dtype)])


def row_spans(numbers: Array, limit: int, per_expert: bool) -> list[tuple[int, int]]:
    """(first, last) row of each expert: within its own rows, or of all."""
    spans, first = [], 0
    for number in numbers.tolist():
        fits = first <= number <= limit
        check(fits, f"{NAME}.tokens_expert_prefix_sum", f"{first} .. {limit}", number)
        spans.append((first, number))
        first = 0 if per_expert else number
    return spans


def feed_forward(x: Value, up: Value, down: Value, bias: Value | None) -> Value:
    """The products between are rounded to the rows' type, as the contract says."""
    both = f32(matmul(x, up))
    both = rounded(both if bias is None else both + f32(bias), x.dtype)
    gate, value = paddle.split(wide(both), 2, axis=-1)
    inner = rounded(silu_mul(gate, value), x.dtype)
    return rounded(f32(matmul(inner, down)), x.dtype)
