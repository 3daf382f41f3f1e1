"""weight_only_linear: a dense layer over the codes of weight_quantize."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api import dtype as dt
from fd_core.api.tensor import TensorSpec
from fd_core.ops.quantization._layout import layout
from fd_core.ops.quantization.weight_dequantize import codes_and_scale
from fd_core.ops.schema import REQUIRED, Case, In, OptIn, Out, Tolerance, op

TOLERANCE = Tolerance(
    "sums of K <= 1024 products near 1 in all: a float32 chain errs by about sqrt(K) * 2^-24, which "
    "cancellation leaves absolute; then one rounding to the output type",
    {"float32": (1e-5, 2e-5), "bfloat16": (2**-7, 2e-5), "float16": (2**-10, 2e-5)},
)


def _case(
    shape: tuple[int, ...], n: int, kind: str, group: int, *, bias: bool, bench: bool = False
) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        algo = f"weight_only_{kind}"
        weight, scale = codes_and_scale(rng, shape[-1], n, algo, group, dtype)
        return {
            "x": rng.standard_normal(shape, np.float32).astype(dtype),
            "weight": weight,
            "bias": rng.standard_normal(n, np.float32).astype(dtype) if bias else None,
            "weight_scale": scale,
            "weight_dtype": kind,
            "arch": 80,
            "group_size": group,
        }

    name = f"{'x'.join(map(str, shape))}x{n}-{kind}-g{group}" + "-bias" * bias
    flops = 2 * int(np.prod(shape)) * n
    return Case(name, args, dt.FLOATS, bench, bytes=shape[-1] * n, flops=flops)


CASES = [
    _case((5, 192), 48, kind, group, bias=group < 0) for kind in ("int8", "int4") for group in (-1, 64, 128)
]
CASES += [
    _case((0, 64), 16, "int8", -1, bias=False),
    _case((2, 3, 1024), 32, "int4", 64, bias=True),
    _case((8, 1024), 1024, "int8", -1, bias=False, bench=True),
]


def _output(x: TensorSpec, weight: TensorSpec, weight_dtype: str, **_: Any) -> list[TensorSpec]:
    columns = weight.shape[0] * (2 if weight_dtype == "int4" else 1)
    return [TensorSpec((*x.shape[:-1], columns), x.dtype)]


@op(family="quantization", infer=_output, cases=CASES, tolerance=TOLERANCE, rows=("x", "out"))
def weight_only_linear(
    x: In,
    weight: In,
    bias: OptIn = None,
    weight_scale: OptIn = None,
    weight_dtype: str = "int8",
    arch: int = 0,
    group_size: int = -1,
    out: Out = REQUIRED,
) -> None:
    """out [..., N] = x [..., K] @ (code * scale, rounded to x's type) + bias, one rounding at the end.

    `weight`, `weight_scale` are weight_quantize's outputs for algo "weight_only_" + weight_dtype ("int8"
    or "int4") with the same group_size; `bias` [N]; `weight_scale` is required in spite of its place.
    x float32, bfloat16 or float16; out, bias and scale of x's type. A row's result does not depend on
    the other rows. Errors: weight_quantize's, and ValueError for shapes that do not fit. Source:
    PaddlePaddle's op of this name.
    """
    if weight_scale is None:
        raise ValueError("weight_only_linear.weight_scale: want the scales of weight_quantize, have None")
    algo = f"weight_only_{weight_dtype}"
    plan = layout("weight_only_linear", algo, arch, group_size, x.shape[-1], out.shape[-1])
    dequantised = (plan.unpack(weight) * plan.spread(weight_scale)).astype(np.float32).astype(x.dtype)
    total = x.astype(np.float64) @ dequantised.astype(np.float64)
    if bias is not None:
        total = total + bias.astype(np.float64)
    out[...] = total.astype(np.float32).astype(out.dtype)
