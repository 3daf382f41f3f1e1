"""gelu_tanh: the tanh form of GELU."""

from __future__ import annotations

import numpy as np

from fd_core.ops.activation.silu import TOLERANCE, unary_case
from fd_core.ops.schema import Array, In, Out, op

CASES = [unary_case(s) for s in ((0, 8), (1, 1), (3, 7), (17, 100), (2, 3, 40), (5,))]
CASES += [unary_case((64, 4096), bench=True)]


def gelu(x: Array) -> Array:
    """float64 in, float64 out."""
    inner = np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)
    return np.asarray(0.5 * x * (1.0 + np.tanh(inner)))


@op(family="activation", infer=lambda x: [x], cases=CASES, tolerance=TOLERANCE, rows=("x", "out"))
def gelu_tanh(x: In, out: Out) -> None:
    """out = 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), float32 inside, one rounding.

    x of any rank >= 1 (the call-compatible entry takes rank 2), float32 | bfloat16 | float16,
    contiguous, or rank 2 with strided rows; out like x, may be x itself. NaN at -inf.
    Source: Hendrycks and Gimpel 2016; specification ops-attention-kv §2.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        out[...] = gelu(x.astype(np.float64)).astype(np.float32).astype(out.dtype)
