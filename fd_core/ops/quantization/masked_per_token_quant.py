"""masked_per_token_quant: per_token_quant of the valid rows of every expert."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api import dtype as dt
from fd_core.api.tensor import TensorSpec
from fd_core.ops.checks import check
from fd_core.ops.quantization._float8 import GROUP, column_major, quantise_groups
from fd_core.ops.schema import EXACT, REQUIRED, Case, In, Out, op


def _case(shape: tuple[int, int, int], counts: list[int], power: bool, bench: bool = False) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        x = rng.standard_normal(shape, np.float32) * np.exp2(rng.integers(-12, 12, (*shape[:2], 1)))
        count = np.array(counts, np.int32)
        return {
            "input": x.astype(dtype), "recv_expert_count": count, "block_size": GROUP, "use_ue8m0": power
        }  # fmt: skip

    name = f"{'x'.join(map(str, shape))}-{'.'.join(map(str, counts[:4]))}" + "-ue8m0" * power
    return Case(name, args, (dt.bfloat16, dt.float16), bench, bytes=3 * int(np.prod(shape)))


SHAPES = [
    ((2, 4, 256), [3, 2]),
    ((3, 6, 512), [4, 2, 5]),
    ((4, 7, 384), [6, 3, 7, 1]),
    ((2, 5, 640), [9, -2]),
    ((1, 0, 128), [0]),
]
CASES = [_case(shape, counts, power) for shape, counts in SHAPES for power in (False, True)]
CASES += [_case((8, 128, 1024), [64] * 8, False, bench=True)]


def _outputs(
    input: TensorSpec, recv_expert_count: TensorSpec, block_size: int, use_ue8m0: bool
) -> list[TensorSpec]:
    experts, capacity, columns = input.shape
    aligned = -(-capacity // 4) * 4 if use_ue8m0 else capacity
    scale = column_major((experts,), capacity, aligned, columns, use_ue8m0)
    return [TensorSpec(input.shape, dt.float8_e4m3fn), scale]


@op(
    family="quantization",
    infer=_outputs,
    cases=CASES,
    tolerance=EXACT,
    rows=("input", "recv_expert_count", "output", "output_scale"),
)
def masked_per_token_quant(
    input: In,
    recv_expert_count: In,
    block_size: int,
    use_ue8m0: bool = False,
    output: Out = REQUIRED,
    output_scale: Out = REQUIRED,
) -> None:
    """per_token_quant of rows [0, recv_expert_count[e]) of input [E, C, H]; all other rows are 0.

    output [E, C, H] float8_e4m3fn; output_scale [E, C, G] float32, G = H / 128 (allocated with strides
    (G C, 1, C)); with use_ue8m0 [E, C, ceil(G / 4)] int32 (C rounded up to a multiple of 4 in the
    strides). A kernel writes any strides. A count above C means C, a negative one 0. input bfloat16 or
    float16, H a multiple of 128, recv_expert_count [E] int32, block_size 128. Raises ValueError for
    other sizes, TypeError for other types. Source: specification ops-quant-moe §1.
    """
    experts, capacity, columns = input.shape
    name = "masked_per_token_quant"
    check(columns % GROUP == 0, name, "input", "columns in groups of 128", columns)
    check(
        recv_expert_count.shape == (experts,), name, "recv_expert_count", [experts], recv_expert_count.shape
    )
    codes, scale = quantise_groups(name, input, block_size, use_ue8m0)
    valid = (np.arange(capacity) < recv_expert_count[:, None])[:, :, None]
    output[...] = np.where(valid, codes, np.zeros_like(codes))
    output_scale[...] = np.where(valid, scale, np.zeros_like(scale))
