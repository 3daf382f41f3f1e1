"""moe_expert_ffn: each expert's gated feed-forward over its rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fd_core.api.dtype import FLOATS, bfloat16, float16
from fd_core.ops.quantization._layout import LIMITS, layout
from fd_core.ops.quantization.weight_dequantize import codes_and_scale
from fd_core.ops.schema import Array, Case, In, OptIn, Out, Tolerance, op

TOLERANCE = Tolerance(
    "float32: two chains of at most 300 terms near 1, as linear. 16 bit: the inner roundings may "
    "fall the other way, which moves a term by an ulp (2^-8, 2^-11); their random sum stays below an ulp "
    "of the result, and the last rounding adds one more. w8a8: such a rounding may also move a code of the "
    "second product by one, 1/127 of a row's largest; the cases' second weights are an eighth of the "
    "others', so that one of them weighs 1e-3 at most",
    {"float32": (1e-5, 2e-5), "bfloat16": (2**-6, 2**-7), "float16": (2**-9, 2**-10)},
)
PLAIN = ("none", "w16a16")
CODES = tuple(LIMITS)
METHODS = (*PLAIN, *CODES, "w8a8")


def _case(
    counts: list[int],
    hidden: int,
    inner: int,
    *,
    spare: int = 0,
    bias: bool = False,
    low: bool = False,
    wide: bool = False,
    method: str = "none",
) -> Case:
    """`counts`: rows of each expert; `spare`: rows beyond them; `wide`: float32 activations."""

    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        experts = len(counts)
        shape = (experts, max(counts) + spare, hidden) if low else (sum(counts) + spare, hidden)
        kind = np.float32 if wide else dtype
        up, up_scale = _weights(rng, experts, hidden, 2 * inner, method, dtype)
        down, down_scale = _weights(rng, experts, inner, hidden, method, dtype)
        if method == "w8a8":
            down_scale = (down_scale / 8).astype(dtype)
        shift = rng.standard_normal((experts, 1, 2 * inner), np.float32).astype(kind) if bias else None
        return {
            "permute_input": rng.standard_normal(shape, np.float32).astype(kind),
            "tokens_expert_prefix_sum": np.array(counts if low else np.cumsum(counts), np.int64),
            "up_gate_proj_weight": up,
            "down_proj_weight": down,
            "up_gate_proj_bias": shift,
            "up_gate_proj_scale": up_scale,
            "down_proj_scale": down_scale,
            "down_proj_in_scale": None,
            "expert_idx_per_token": None,
            "quant_method": method,
            "used_in_ep_low_latency": low,
        }

    name = f"{'.'.join(map(str, counts))}-h{hidden}-i{inner}" + f"-spare{spare}" * (spare > 0)
    name += "-bias" * bias + "-low" * low + "-x32" * wide + f"-{method}" * (method != "none")
    return Case(name, args, (bfloat16, float16) if method == "w8a8" else FLOATS)


def _weights(
    rng: np.random.Generator, experts: int, depth: int, columns: int, method: str, dtype: np.dtype[Any]
) -> tuple[Array, Any]:
    """(weights as the method stores them, scales) whose products are as large as their inputs."""
    if method in PLAIN:
        plain = rng.standard_normal((experts, depth, columns), np.float32) / np.float32(depth**0.5)
        return plain.astype(dtype), None
    if method in CODES:
        made = [codes_and_scale(rng, depth, columns, method, -1, dtype) for _ in range(experts)]
        return np.stack([codes for codes, _ in made]), np.stack([scale for _, scale in made])
    codes = rng.integers(-127, 128, (experts, columns, depth)).astype(np.int8)
    scale = rng.uniform(0.5, 1.5, (experts, columns)) / (127 * depth**0.5)
    return codes, scale.astype(np.float32).astype(dtype)


CASES = [
    _case([0], 8, 8),
    _case([1], 1, 1),
    _case([3, 0, 1, 16], 64, 32, bias=True),
    _case([2, 5], 100, 37, spare=3),
    _case([4, 0, 2], 40, 24, low=True, spare=1, bias=True),
    _case([20, 1], 300, 70, wide=True),
    _case([3, 0, 18], 128, 64, method="weight_only_int8", bias=True),
    _case([2, 1], 320, 192, method="weight_only_int8", low=True, spare=1),
    _case([5, 0, 1, 15], 64, 128, method="weight_only_int4"),
    _case([1, 4], 320, 64, method="weight_only_int4", spare=2, bias=True),
    _case([3, 0, 1, 16], 100, 37, method="w8a8", bias=True, spare=1),
    _case([2, 0, 7], 320, 70, method="w8a8", low=True),
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
    up_gate_proj_bias [E, 2I] or [E, 1, 2I] of the rows' type, or None. [g, u] (gate before up) and
    silu(g) * u are rounded to the rows' type; rows that belong to no expert become 0. Weights and scales
    by `quant_method`:

    - "none", "w16a16": up_gate_proj_weight [E, H, 2I] and down_proj_weight [E, I, H] of one float type,
      not necessarily the rows'; no scales.
    - "weight_only_int8": [E, 2I, H] and [E, H, I] int8; "weight_only_int4": [E, I, H] and [E, H / 2, I]
      int8, two codes a byte. Each expert's is weight_quantize's output of that algorithm (group_size -1),
      up_gate_proj_scale [E, 2I] and down_proj_scale [E, H] its scales, of the rows' type. A weight is
      code * scale rounded to the rows' type. H and I multiples of 64.
    - "w8a8": codes [E, 2I, H] and [E, H, I] int8, K adjacent, with float scales [E, 2I] and [E, H] of any
      float type. Each row's inputs of both products become codes too: x * (127 / absmax) to the nearest,
      ties to even, with the scale absmax / 127; products are those of the codes, sums exact or (kernels,
      every so many inputs) in float32. A row of zeros gives the bias; one with a NaN or an infinity
      becomes NaN.

    expert_idx_per_token is not needed. "w4a8" and "w4afp8" (scales fixed beforehand, rotated inputs) are
    not offered, nor is down_proj_in_scale, which is theirs. Raises ValueError for other methods, for
    scales where there are to be none or none where there are to be some, and for sums that fall or exceed
    the rows. Source: specification ops-quant-moe §7 (first version), §8 for "w8a8".
    """
    if quant_method not in METHODS:
        raise ValueError(f"moe_expert_ffn.quant_method: want one of {METHODS}, have {quant_method!r}")
    _check_scales(quant_method, up_gate_proj_scale, down_proj_scale, down_proj_in_scale)
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
        up = _product(quant_method, up_gate_proj_weight, up_gate_proj_scale, e)
        down = _product(quant_method, down_proj_weight, down_proj_scale, e)
        out[rows] = _expert(permute_input[rows], up, down, shift)


def _check_scales(method: str, up: Array | None, down: Array | None, down_in: Array | None) -> None:
    if down_in is not None or (method in PLAIN and (up is not None or down is not None)):
        which = "scales" if down_in is None else "down_proj_in_scale"
        raise ValueError(f"moe_expert_ffn: want no {which} with quant_method {method!r}")
    for name, scale in (("up_gate_proj_scale", up), ("down_proj_scale", down)):
        if method not in PLAIN and scale is None:
            raise ValueError(f"moe_expert_ffn.{name}: want the scales of {method}, have None")


#: The exact product of rows with one expert's matrix, float64.
Product = Callable[[Array], Array]


def _product(method: str, weight: Array, scale: Array | None, e: int) -> Product:
    if scale is None:
        return lambda x: np.asarray(x.astype(np.float64) @ weight[e].astype(np.float64))
    step = scale.reshape(len(weight), -1)[e]
    if method == "w8a8":
        return lambda x: _integer_product(x, weight[e], step)
    plan = layout("moe_expert_ffn", method, 0, -1, weight.shape[2], len(step))

    def widened(x: Array) -> Array:
        w = (plan.unpack(weight[e]) * plan.spread(step)).astype(np.float32).astype(x.dtype)
        return np.asarray(x.astype(np.float64) @ w.astype(np.float64))

    return widened


def _integer_product(x: Array, codes: Array, scale: Array) -> Array:
    wide = x.astype(np.float32)
    most = np.abs(wide).max(axis=1, keepdims=True, initial=0)
    inverse = np.divide(np.float32(127), most, where=most > 0, out=np.zeros_like(most))
    with np.errstate(invalid="ignore"):  # infinity times zero: that row becomes NaN
        sums = np.rint(wide * inverse).astype(np.float64) @ codes.astype(np.float64).T
    steps = (most / np.float32(127)).astype(np.float64)
    return np.asarray(sums * steps * scale.astype(np.float64))


def _expert(x: Array, up: Product, down: Product, shift: Array | None) -> Array:
    kind, wide = x.dtype, np.float64
    h = up(x)
    if shift is not None:
        h = h + shift.astype(wide)
    gate, value = np.split(h.astype(np.float32).astype(kind).astype(wide), 2, axis=-1)
    inner = (gate / (1 + np.exp(-gate)) * value).astype(np.float32).astype(kind)
    return np.asarray(down(inner).astype(np.float32).astype(kind))
