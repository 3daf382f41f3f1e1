"""silu: x * sigmoid(x)."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.dtype import FLOATS
from fd_core.ops.schema import Case, In, Out, Tolerance, op

TOLERANCE = Tolerance(
    "exp within 2 ulp, three more float32 roundings, an argument rounded by 2^-24 of at most 20 where "
    "the result still exceeds the absolute term; one rounding to the output type",
    {"float32": (4e-6, 1e-7), "bfloat16": (2**-7, 1e-6), "float16": (2**-10, 1e-6)},
)


def unary_case(shape: tuple[int, ...], bench: bool = False) -> Case:
    """One input `x` with values in the curved region and beyond both ends."""

    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        return {"x": (rng.standard_normal(shape) * 4).astype(dtype)}

    return Case(
        "x".join(map(str, shape)), args, FLOATS, bench, bytes=lambda size: 2 * size * int(np.prod(shape))
    )


CASES = [unary_case(s) for s in ((0, 8), (1, 1), (3, 7), (17, 100), (2, 3, 40), (5,))]
CASES += [unary_case((64, 4096), bench=True)]


@op(family="activation", infer=lambda x: [x], cases=CASES, tolerance=TOLERANCE, rows=("x", "out"))
def silu(x: In, out: Out) -> None:
    """out = x / (1 + exp(-x)), in float32 with one rounding; NaN at -inf.

    x of any rank >= 1, float32 | bfloat16 | float16, contiguous, or rank 2 with strided rows; out like
    x, may be x itself.
    """
    wide = x.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        out[...] = (wide / (1.0 + np.exp(-wide))).astype(np.float32).astype(out.dtype)
