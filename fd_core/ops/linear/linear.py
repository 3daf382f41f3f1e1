"""linear: a dense layer over plain weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.dtype import FLOATS
from fd_core.api.tensor import TensorSpec
from fd_core.ops.schema import Case, In, OptIn, Out, Tolerance, op

TOLERANCE = Tolerance(
    "cases keep sum(x * w) near 1: a float32 chain of K <= 4096 terms then errs by about "
    "sqrt(K) * 2^-24 < 4e-6, which cancellation leaves absolute; one rounding to the output type, so at "
    "most one ulp there (2^-8 for bfloat16, 2^-11 for float16)",
    {"float32": (1e-5, 2e-5), "bfloat16": (2**-7, 2e-5), "float16": (2**-10, 2e-5)},
)


def _case(m: int, k: int, n: int, *, bias: bool = False, wide: bool = False, bench: bool = False) -> Case:
    """`wide`: float32 activations beside weights of the case's type."""

    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        x = rng.standard_normal((m, k), np.float32)
        weight = rng.standard_normal((n, k), np.float32) / np.float32(max(1, k) ** 0.5)
        shift = rng.standard_normal(n, np.float32).astype(dtype) if bias else None
        return {"x": x if wide else x.astype(dtype), "weight": weight.astype(dtype), "bias": shift}

    name = f"{m}x{k}x{n}" + "-bias" * bias + "-x32" * wide
    return Case(
        name,
        args,
        FLOATS,
        bench,
        bytes=lambda size: size * (k * n + m * n) + (4 if wide else size) * m * k,
        flops=2 * m * k * n,
    )


CASES = [
    _case(0, 64, 64),
    _case(1, 1, 1, bias=True),
    _case(3, 0, 5, bias=True),
    _case(2, 64, 0),
    _case(1, 300, 97, bias=True),
    _case(3, 257, 33),
    _case(17, 100, 64, bias=True),
    _case(5, 1024, 130, wide=True),
    _case(43, 513, 40, bias=True, wide=True),
    _case(530, 65, 31, bias=True),
    _case(1, 1024, 4096, bench=True, wide=True),
    _case(512, 1024, 1024, bench=True, wide=True),
]


def _output(x: TensorSpec, weight: TensorSpec, bias: TensorSpec | None) -> list[TensorSpec]:
    return [TensorSpec((x.shape[0], weight.shape[0]), x.dtype)]


@op(family="linear", infer=_output, cases=CASES, tolerance=TOLERANCE, rows=("x", "out"))
def linear(x: In, weight: In, bias: OptIn, out: Out) -> None:
    """out = x @ weight^T + bias, accumulated in float32 or wider, one rounding at the end.

    x [M, K], weight [N, K] (a checkpoint's layout), bias [N] or None, out [M, N]: each float32,
    bfloat16 or float16, not necessarily the same; the shape rule gives `out` x's type. A row's result
    does not depend on the other rows. K = 0 gives the bias. Raises ValueError for shapes that do not
    fit. Source: every transformer; the layout is the checkpoints'.
    """
    total = x.astype(np.float64) @ weight.astype(np.float64).T
    if bias is not None:
        total = total + bias.astype(np.float64)
    out[...] = total.astype(np.float32).astype(out.dtype)
