"""moe_expert_ffn: each expert's gated feed-forward over its rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.dtype import FLOATS
from fd_core.ops.schema import Array, Case, In, OptIn, Out, Tolerance, op

TOLERANCE = Tolerance(
    "float32: two chains of at most 300 terms near 1, as linear. 16 bit: the inner roundings may "
    "fall the other way, which moves a term by an ulp (2^-8, 2^-11); their random sum stays below an ulp "
    "of the result, and the last rounding adds one more",
    {"float32": (1e-5, 2e-5), "bfloat16": (2**-6, 2**-7), "float16": (2**-9, 2**-10)},
)
PLAIN = ("none", "w16a16")


def _case(
    counts: list[int],
    hidden: int,
    inner: int,
    *,
    spare: int = 0,
    bias: bool = False,
    low: bool = False,
    wide: bool = False,
) -> Case:
    """`counts`: rows of each expert; `spare`: rows beyond them; `wide`: float32 activations."""

    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        experts = len(counts)
        shape = (experts, max(counts) + spare, hidden) if low else (sum(counts) + spare, hidden)
        kind = np.float32 if wide else dtype
        up = rng.standard_normal((experts, hidden, 2 * inner), np.float32) / np.float32(hidden**0.5)
        down = rng.standard_normal((experts, inner, hidden), np.float32) / np.float32(inner**0.5)
        shift = rng.standard_normal((experts, 1, 2 * inner), np.float32).astype(kind) if bias else None
        return {
            "permute_input": rng.standard_normal(shape, np.float32).astype(kind),
            "tokens_expert_prefix_sum": np.array(counts if low else np.cumsum(counts), np.int64),
            "up_gate_proj_weight": up.astype(dtype),
            "down_proj_weight": down.astype(dtype),
            "up_gate_proj_bias": shift,
            "up_gate_proj_scale": None,
            "down_proj_scale": None,
            "down_proj_in_scale": None,
            "expert_idx_per_token": None,
            "quant_method": "none",
            "used_in_ep_low_latency": low,
        }

    name = f"{'.'.join(map(str, counts))}-h{hidden}-i{inner}" + f"-spare{spare}" * (spare > 0)
    return Case(name + "-bias" * bias + "-low" * low + "-x32" * wide, args, FLOATS)


CASES = [
    _case([0], 8, 8),
    _case([1], 1, 1),
    _case([3, 0, 1, 16], 64, 32, bias=True),
    _case([2, 5], 100, 37, spare=3),
    _case([4, 0, 2], 40, 24, low=True, spare=1, bias=True),
    _case([20, 1], 300, 70, wide=True),
]


@op(
    family="moe",
    infer=lambda permute_input, **_: [permute_input],
    cases=CASES,
    tolerance=TOLERANCE,
)
def moe_expert_ffn(
    permute_input: In,
    tokens_expert_prefix_sum: In,
    up_gate_proj_weight: In,
    down_proj_weight: In,
    up_gate_proj_bias: OptIn,
    up_gate_proj_scale: OptIn,
    down_proj_scale: OptIn,
    down_proj_in_scale: OptIn,
    expert_idx_per_token: OptIn,
    quant_method: str,
    used_in_ep_low_latency: bool,
    out: Out,
) -> None:
    """out = (silu(g) * u) @ W_down[e], [g, u] = x @ W_up[e] + bias[e], for the rows of each expert e.

    permute_input [R, H] with tokens_expert_prefix_sum [E] int64 inclusive row counts, or, with
    `used_in_ep_low_latency`, [E, C, H] with the counts of each expert; float32 | bfloat16 | float16.
    up_gate_proj_weight [E, H, 2I] (gate before up) and down_proj_weight [E, I, H] of one float type,
    not necessarily the rows'; up_gate_proj_bias [E, 2I] or [E, 1, 2I] of the rows' type, or None.
    [g, u] and silu(g) * u are rounded to the rows' type; rows that belong to no expert become 0.
    expert_idx_per_token is not needed. Raises ValueError for a `quant_method` other than "none" and
    "w16a16", for scales, and for sums that fall or exceed the rows. Source: specification
    ops-quant-moe §7 (first version).
    """
    if quant_method not in PLAIN:
        raise ValueError(f"moe_expert_ffn.quant_method: want one of {PLAIN}, have {quant_method!r}")
    if any(s is not None for s in (up_gate_proj_scale, down_proj_scale, down_proj_in_scale)):
        raise ValueError(f"moe_expert_ffn: want no scales with quant_method {quant_method!r}")
    out[...] = 0
    numbers = [int(n) for n in tokens_expert_prefix_sum]
    for e, number in enumerate(numbers):
        rows: tuple[Any, ...] = (e, slice(0, number))
        limit, first = permute_input.shape[-2], 0
        if not used_in_ep_low_latency:
            first = numbers[e - 1] if e else 0
            rows = (slice(first, number),)
        if not first <= number <= limit:
            raise ValueError(
                f"moe_expert_ffn.tokens_expert_prefix_sum: want {first} .. {limit}, have {number}"
            )
        shift = None if up_gate_proj_bias is None else up_gate_proj_bias.reshape(len(numbers), -1)[e]
        out[rows] = _expert(permute_input[rows], up_gate_proj_weight[e], down_proj_weight[e], shift)


def _expert(x: Array, up: Array, down: Array, shift: Array | None) -> Array:
    kind, wide = x.dtype, np.float64
    h = x.astype(wide) @ up.astype(wide)
    if shift is not None:
        h = h + shift.astype(wide)
    gate, value = np.split(h.astype(np.float32).astype(kind).astype(wide), 2, axis=-1)
    inner = (gate / (1 + np.exp(-gate)) * value).astype(np.float32).astype(kind)
    return np.asarray((inner.astype(wide) @ down.astype(wide)).astype(np.float32).astype(kind))
