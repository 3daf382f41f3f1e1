"""fused_hadamard_quant_fp8: rotate blocks of 32 by a Hadamard matrix, then to float8."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fd_core.api import dtype as dt
from fd_core.api.tensor import TensorSpec
from fd_core.ops.checks import check
from fd_core.ops.quantization._float8 import e4m3
from fd_core.ops.schema import EXACT, REQUIRED, Case, In, Out, op

BLOCK = 32


def _case(shape: tuple[int, ...], scale: float, bench: bool = False) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        return {"input": rng.uniform(-1, 1, shape).astype(dtype), "scale": scale}

    name = f"{'x'.join(map(str, shape))}-{scale:g}"
    return Case(name, args, (dt.bfloat16,), bench, bytes=3 * int(np.prod(shape)))


CASES = [_case((1024,), 1.2), _case((0, 32), 1.0), _case((3, 96), 0.01), _case((2, 4, 8), -3.0)]
CASES += [_case((512, 1024), 0.1, bench=True)]


@op(
    family="quantization",
    infer=lambda input, scale: [TensorSpec(input.shape, dt.float8_e4m3fn)],
    cases=CASES,
    tolerance=EXACT,
)
def fused_hadamard_quant_fp8(input: In, scale: float, output: Out = REQUIRED) -> None:
    """output = e4m3(H x / scale) for every 32 consecutive elements x of input.

    H is the Walsh-Hadamard matrix in natural order, not normalised, as five butterflies: with h = 1, 2,
    4, 8, 16 the pair (l, l + h) becomes (a + b, a - b), each rounded to bfloat16. Then a float32
    division by `scale`, nearest even, saturating, NaN kept. input bfloat16 of any shape with a multiple
    of 32 elements; output of its shape, float8_e4m3fn. Raises ValueError for other sizes and for a scale
    that is 0 or not finite, TypeError for other types. Source: specification ops-quant-moe §2.
    """
    name = "fused_hadamard_quant_fp8"
    check(input.size % BLOCK == 0, name, "input", "a multiple of 32 elements", input.size)
    check(math.isfinite(scale) and scale != 0, name, "scale", "a finite number other than 0", scale)
    x = input.reshape(-1, BLOCK)
    with np.errstate(over="ignore", invalid="ignore"):
        for h in (1, 2, 4, 8, 16):
            pairs = x.reshape(-1, BLOCK // (2 * h), 2, h).astype(np.float32)
            a, b = pairs[:, :, :1], pairs[:, :, 1:]
            x = np.concatenate([a + b, a - b], axis=2).astype(input.dtype)
        output[...] = e4m3(x.astype(np.float32) / np.float32(scale)).reshape(input.shape)
