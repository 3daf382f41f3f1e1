"""per_token_quant_padding: per_token_quant with the scales stored group by group, rows padded to four."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api import dtype as dt
from fd_core.api.tensor import TensorSpec
from fd_core.ops.checks import check
from fd_core.ops.quantization._float8 import GROUP, column_major, quantise_groups
from fd_core.ops.schema import EXACT, REQUIRED, Case, In, Out, op


def _case(m: int, h: int, power: bool, bench: bool = False) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        x = rng.standard_normal((m, h), np.float32) * np.exp2(rng.integers(-12, 12, (m, 1)))
        x[1:2] = 0
        return {"input": x.astype(dtype), "block_size": GROUP, "use_ue8m0": power}

    return Case(f"{m}x{h}" + "-ue8m0" * power, args, (dt.bfloat16, dt.float16), bench, bytes=3 * m * h)


CASES = [
    _case(m, h, power) for m, h in ((0, 128), (1, 128), (5, 640), (8, 1024)) for power in (False, True)
]
CASES += [_case(512, 1024, False, bench=True)]


def _outputs(input: TensorSpec, block_size: int, use_ue8m0: bool) -> list[TensorSpec]:
    rows, columns = input.shape
    padded = -(-rows // 4) * 4
    scale = column_major((), padded, padded, columns, use_ue8m0)
    return [TensorSpec(input.shape, dt.float8_e4m3fn), scale]


@op(family="quantization", infer=_outputs, cases=CASES, tolerance=EXACT, rows=("input", "output"))
def per_token_quant_padding(
    input: In,
    block_size: int,
    use_ue8m0: bool = False,
    output: Out = REQUIRED,
    output_scale: Out = REQUIRED,
) -> None:
    """output [M, H] float8_e4m3fn and scales as per_token_quant makes them, for column-major readers.

    output_scale [Mp, G] float32, Mp = M rounded up to a multiple of 4, G = H / 128; with use_ue8m0
    [Mp, ceil(G / 4)] int32, byte g % 4 of element (m, g // 4). Rows M .. Mp - 1 are 0. The public call
    allocates it with strides (1, Mp); a kernel writes any strides. input [M, H] bfloat16 or float16,
    H a multiple of 128, block_size 128. Raises ValueError for other sizes, TypeError for other types.
    Source: specification ops-quant-moe §1.
    """
    rows, columns = input.shape
    check(columns % GROUP == 0, "per_token_quant_padding", "input", "columns in groups of 128", columns)
    output_scale[rows:] = 0
    codes, scale = quantise_groups("per_token_quant_padding", input, block_size, use_ue8m0)
    output[...], output_scale[:rows] = codes, scale
