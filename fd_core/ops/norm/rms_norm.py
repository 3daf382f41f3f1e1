"""rms_norm: root-mean-square normalisation over the last dimension."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.dtype import FLOATS
from fd_core.ops.schema import Case, In, Out, Tolerance, op

TOLERANCE = Tolerance(
    "sums of squares in float32 in any order differ by a few ulp; one rounding to the output type, "
    "so at most one ulp there (2^-8 for bfloat16, 2^-11 for float16)",
    {"float32": (4e-6, 1e-7), "bfloat16": (2**-7, 1e-6), "float16": (2**-10, 1e-6)},
)


def _case(tokens: int, hidden: int, bench: bool = False, wide_weight: bool = False) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        x = rng.standard_normal((tokens, hidden)).astype(dtype)
        weight = rng.uniform(0.5, 1.5, hidden).astype(np.float32 if wide_weight else dtype)
        return {"x": x, "weight": weight, "eps": 1e-6}

    name = f"{tokens}x{hidden}" + ("-float32-weight" if wide_weight else "")
    return Case(name, args, FLOATS, bench, bytes=lambda size: 2 * size * tokens * hidden)


CASES = [_case(0, 64), _case(1, 1), _case(3, 7), _case(17, 100), _case(4, 1024), _case(2, 4096)]
CASES += [_case(5, 200, wide_weight=True), _case(2, 12288)]
CASES += [_case(1, 1024, bench=True), _case(512, 1024, bench=True), _case(64, 8192, bench=True)]


@op(
    family="norm",
    infer=lambda x, weight, eps: [x],
    cases=CASES,
    tolerance=TOLERANCE,
    rows=("x", "out"),
)
def rms_norm(x: In, weight: In, eps: float, out: Out) -> None:
    """out = x / sqrt(mean(x^2) + eps) * weight, per row, in float32 with one rounding at the end.

    x [tokens, hidden] float32 | bfloat16 | float16; weight [hidden] of x's type or float32; out like
    x, may be x itself. Rows of x and out may be strided (column slices of a wider buffer). `eps` >= 0.
    Source: Zhang and Sennrich 2019; specification ops-quant-moe §9.
    """
    wide = x.astype(np.float32)
    scale = 1.0 / np.sqrt(np.mean(wide * wide, axis=-1, keepdims=True) + np.float32(eps))
    out[...] = (wide * scale * weight.astype(np.float32)).astype(out.dtype)
