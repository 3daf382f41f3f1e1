"""weight_dequantize: the inverse of weight_quantize."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api import dtype as dt
from fd_core.api.tensor import TensorSpec
from fd_core.ops.quantization._layout import LIMITS, layout
from fd_core.ops.schema import EXACT, REQUIRED, Case, In, Out, op


def codes_and_scale(
    rng: np.random.Generator, k: int, n: int, algo: str, group: int, dtype: np.dtype[Any]
) -> tuple[Any, Any]:
    """Random codes of the whole range, stored, and positive scales."""
    plan = layout("weight_dequantize", algo, 80, group, k, n)
    limit = LIMITS[algo]
    codes = plan.pack(rng.integers(-limit, limit + 1, (k, n), np.int32))
    scale = rng.uniform(0.5, 1.5, plan.scale_shape) / (limit * k**0.5)
    return codes, scale.astype(np.float32).astype(dtype)


def _case(k: int, n: int, algo: str, group: int) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        x, scale = codes_and_scale(rng, k, n, algo, group, dtype)
        return {"x": x, "scale": scale, "algo": algo, "out_dtype": "float16", "group_size": group}

    return Case(f"{k}x{n}-{algo[12:]}-g{group}", args, dt.FLOATS)


CASES = [_case(192, 48, algo, group) for algo in LIMITS for group in (-1, 64, 128)]


def _output(
    x: TensorSpec, scale: TensorSpec, algo: str, out_dtype: str, group_size: int
) -> list[TensorSpec]:
    return [TensorSpec((x.shape[1], scale.shape[-1]), scale.dtype)]


@op(family="quantization", infer=_output, cases=CASES, tolerance=EXACT)
def weight_dequantize(
    x: In,
    scale: In,
    algo: str = "weight_only_int8",
    out_dtype: str = "float16",
    group_size: int = -1,
    out: Out = REQUIRED,
) -> None:
    """out [K, N] = code * scale of the codes x that weight_quantize stored, in scale's type, one rounding.

    `out_dtype` is accepted and not used, as in the original: scale's type decides. Shapes, algorithms
    and errors are weight_quantize's. Source: PaddlePaddle's op of this name.
    """
    plan = layout("weight_dequantize", algo, 0, group_size, x.shape[1], scale.shape[-1])
    out[...] = (plan.unpack(x) * plan.spread(scale)).astype(np.float32).astype(out.dtype)
