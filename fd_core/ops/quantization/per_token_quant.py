"""per_token_quant: activations to float8 with a scale per token and 128 columns."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api import dtype as dt
from fd_core.api.tensor import TensorSpec
from fd_core.ops.quantization._float8 import GROUP, groups_of, quantise_groups
from fd_core.ops.schema import EXACT, REQUIRED, Case, In, Out, op


def _case(m: int, h: int, power_of_two: bool, *, zero: bool = False, bench: bool = False) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        x = rng.standard_normal((m, h), np.float32) * np.exp2(rng.integers(-12, 12, (m, 1)))
        if zero:
            x[:, : h // 2] = 0
        return {"input": x.astype(dtype), "block_size": GROUP, "use_ue8m0": power_of_two}

    name = f"{m}x{h}" + "-ue8m0" * power_of_two + "-zero" * zero
    return Case(name, args, (dt.bfloat16, dt.float16), bench, bytes=3 * m * h)


CASES = [
    _case(m, h, power)
    for m, h in ((0, 128), (1, 4), (4, 512), (7, 1200), (8, 1024))
    for power in (False, True)
]
CASES += [_case(3, 512, power, zero=True) for power in (False, True)]
CASES += [_case(512, 1024, False, bench=True)]


def _outputs(input: TensorSpec, block_size: int, use_ue8m0: bool) -> list[TensorSpec]:
    rows, columns = input.shape
    groups = groups_of(columns)
    scale = TensorSpec((rows, -(-groups // 4)), dt.int32) if use_ue8m0 else None
    return [
        TensorSpec(input.shape, dt.float8_e4m3fn),
        scale or TensorSpec((rows, groups), dt.float32),
    ]


@op(family="quantization", infer=_outputs, cases=CASES, tolerance=EXACT, rows=("input", "output"))
def per_token_quant(
    input: In,
    block_size: int,
    use_ue8m0: bool = False,
    output: Out = REQUIRED,
    output_scale: Out = REQUIRED,
) -> None:
    """output [M, H] float8_e4m3fn and the multipliers that bring it back, one per 128 columns.

    amax = max(max |x|, 1e-10) of a group (NaN counts as nothing), scale = amax / 448, output =
    e4m3(x * 448 / amax), multiplied first, nearest even, saturating, NaN kept; output_scale
    [M, ceil(H / 128)] float32. use_ue8m0: the scale, raised to a power of two 2^e by its bits,
    divides x; byte g % 4 of
    output_scale [M, ceil(ceil(H / 128) / 4)] int32 at g // 4 is e + 127, other bytes are 0. The range
    factor that an environment variable gives the original is not offered. input [M, H] bfloat16 or
    float16, block_size 128. Raises ValueError for other sizes, TypeError for other types. Source:
    specification ops-quant-moe §1.
    """
    output[...], output_scale[...] = quantise_groups("per_token_quant", input, block_size, use_ue8m0)
