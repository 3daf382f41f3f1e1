"""dequant_int8: int32 sums of an int8 product to floats."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api import dtype as dt
from fd_core.api.tensor import TensorSpec
from fd_core.ops.schema import EXACT, Case, In, Out, op


def _case(m: int, n: int, kind: str) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        sums = rng.integers(-(2**31), 2**31, (m, n), dtype)
        return {"input": sums, "out_scale": rng.uniform(1e-9, 1e-6, n).astype(np.float32), "dtype": kind}

    return Case(f"{m}x{n}-{kind}", args, (dt.int32,), bytes=6 * m * n)


CASES = [_case(m, n, t.name) for t in dt.FLOATS for m, n in ((0, 8), (1, 1), (3, 40), (17, 130))]


def _output(input: TensorSpec, out_scale: TensorSpec, dtype: str) -> list[TensorSpec]:
    if dtype not in (t.name for t in dt.FLOATS):
        raise ValueError(f"dequant_int8.dtype: want float32, float16 or bfloat16, have {dtype!r}")
    return [TensorSpec(input.shape, dt.dtype(dtype))]


@op(family="quantization", infer=_output, cases=CASES, tolerance=EXACT, rows=("input", "output"))
def dequant_int8(input: In, out_scale: In, dtype: str, output: Out) -> None:
    """output [M, N] = float32(input) * out_scale[n], then one rounding to `dtype`.

    input [M, N] int32, out_scale [N] float32, dtype "float32", "bfloat16" or "float16". Raises
    ValueError for other names and for shapes that do not fit, TypeError for other types. Source:
    specification ops-quant-moe §1.
    """
    output[...] = (input.astype(np.float32) * out_scale).astype(output.dtype)
