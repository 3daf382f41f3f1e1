"""layer_norm: normalisation by mean and variance over the last dimension."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.dtype import FLOATS
from fd_core.ops.schema import Case, In, OptIn, Out, Tolerance, op

TOLERANCE = Tolerance(
    "mean and variance in float32 in any order; the subtraction of the mean loses up to |mean|/std "
    "ulps, about 4 here, and the bias may cancel: an absolute term of 2^-20; one rounding to the "
    "output type",
    {"float32": (8e-6, 2e-6), "bfloat16": (2**-7, 2e-6), "float16": (2**-10, 2e-6)},
)


def _case(tokens: int, hidden: int, bias: bool, bench: bool = False) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        x = rng.standard_normal((tokens, hidden)) + 1.0
        weight, shift = rng.uniform(0.5, 1.5, (2, hidden)).astype(dtype)
        return {"x": x.astype(dtype), "weight": weight, "bias": shift if bias else None, "eps": 1e-5}

    name = f"{tokens}x{hidden}" + ("-bias" if bias else "")
    return Case(name, args, FLOATS, bench, bytes=lambda size: 2 * size * tokens * hidden)


CASES = [_case(0, 64, True), _case(1, 1, False), _case(3, 7, True), _case(17, 100, False)]
CASES += [_case(4, 1280, True), _case(2, 12288, True), _case(512, 1280, True, bench=True)]


@op(
    family="norm",
    infer=lambda x, weight, bias, eps: [x],
    cases=CASES,
    tolerance=TOLERANCE,
    rows=("x", "out"),
)
def layer_norm(x: In, weight: In, bias: OptIn, eps: float, out: Out) -> None:
    """out = (x - mean) / sqrt(mean((x - mean)^2) + eps) * weight + bias, per row.

    x [tokens, hidden] float32 | bfloat16 | float16; weight and bias [hidden] of x's type or float32,
    alike; bias may be None; out like x, may be x itself; rows of x and out may be strided. `eps` >= 0.
    Two passes in float32 (the variance is that of the centred values), one rounding at the end.
    Source: Ba, Kiros and Hinton 2016.
    """
    wide = x.astype(np.float32)
    centred = wide - np.mean(wide, axis=-1, keepdims=True)
    variance = np.mean(centred * centred, axis=-1, keepdims=True)
    scaled = centred / np.sqrt(variance + np.float32(eps)) * weight.astype(np.float32)
    shift = 0.0 if bias is None else bias.astype(np.float32)
    out[...] = (scaled + shift).astype(out.dtype)
