"""gelu_tanh_and_mul: gelu_tanh(gate) * up, the gated unit of Gemma."""

from __future__ import annotations

import numpy as np

from fd_core.ops.activation.gelu_tanh import gelu
from fd_core.ops.activation.silu import TOLERANCE
from fd_core.ops.activation.swiglu import halves_case, halves_infer
from fd_core.ops.checks import check
from fd_core.ops.schema import In, Out, op

CASES = [halves_case(s) for s in ((0, 8), (1, 2), (3, 14), (17, 200))]
CASES += [halves_case((64, 8192), bench=True)]


@op(family="activation", infer=halves_infer, cases=CASES, tolerance=TOLERANCE, rows=("x", "out"))
def gelu_tanh_and_mul(x: In, out: Out) -> None:
    """out = gelu_tanh(x[:, :I]) * x[:, I:], float32 inside, one rounding.

    x [M, 2I] float32 | bfloat16 | float16, rows may be strided; out [M, I].
    """
    width = x.shape[-1]
    check(width % 2 == 0, "gelu_tanh_and_mul", "x", "an even last dimension", x.shape)
    wide = x.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        product = gelu(wide[..., : width // 2]) * wide[..., width // 2 :]
    out[...] = product.astype(np.float32).astype(out.dtype)
