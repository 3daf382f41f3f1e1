"""weight_quantize: a linear weight to int8 or int4 codes in the mixed product's order."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api import dtype as dt
from fd_core.api.tensor import TensorSpec
from fd_core.ops.quantization._layout import LIMITS, layout
from fd_core.ops.schema import EXACT, REQUIRED, Case, In, Out, op


def _case(k: int, n: int, algo: str, group: int, *, zero: bool = False, bench: bool = False) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        x = rng.standard_normal((k, n), np.float32)
        if zero:
            x[:, 3] = 0
        return {"x": x.astype(dtype), "algo": algo, "arch": 80, "group_size": group}

    name = f"{k}x{n}-{algo[12:]}-g{group}" + "-zero" * zero
    return Case(name, args, dt.FLOATS, bench, bytes=3 * k * n)


CASES = [_case(64, 16, algo, group) for algo in LIMITS for group in (-1, 64, 128)]
CASES += [_case(320, 48, algo, group, zero=True) for algo in LIMITS for group in (-1, 128)]
CASES += [_case(1024, 1024, "weight_only_int8", -1, bench=True)]


def _outputs(x: TensorSpec, algo: str, arch: int, group_size: int) -> list[TensorSpec]:
    plan = layout("weight_quantize", algo, arch, group_size, *x.shape)
    return [TensorSpec(plan.code_shape, dt.int8), TensorSpec(plan.scale_shape, x.dtype)]


@op(family="quantization", infer=_outputs, cases=CASES, tolerance=EXACT)
def weight_quantize(
    x: In,
    algo: str = "weight_only_int8",
    arch: int = 0,
    group_size: int = -1,
    out: Out = REQUIRED,
    scale: Out = REQUIRED,
) -> None:
    """Codes and dequantisation multipliers of a weight x [K, N]: real = code * scale.

    scale = absmax / 127 (int8) or / 7 (int4) of each column, or of each `group_size` rows of it,
    rounded to x's type; codes = x / scale, nearest, ties away from zero. A column (group) whose scale
    is zero or not finite has codes 0. algo "weight_only_int8": out [N, K] int8, stored as code + 128;
    "weight_only_int4": out [N / 2, K], two nibbles of code + 8. scale [N] or [ceil(K / group_size), N].
    arch 75, 80, 86, 89, 90 (0, the default, also None: any of them) name the one order described in
    specification ops-quant-moe §4; other orders and algorithms raise ValueError, as do K % 64, N % 16
    and a group_size other than -1, 64 and 128. Source: PaddlePaddle's op of this name.
    """
    plan = layout("weight_quantize", algo, arch, group_size, *x.shape)
    limit = LIMITS[algo]
    wide = x.astype(np.float32)
    step = max(1, plan.depth) if group_size < 0 else group_size
    most = [np.abs(wide[k : k + step]).max(axis=0) for k in range(0, plan.depth, step)]
    tops = np.stack(most) if most else np.zeros(plan.scale_shape, np.float32)
    scale[...] = (tops / np.float32(limit)).astype(np.float32).astype(scale.dtype).reshape(scale.shape)
    steps = plan.spread(scale)
    usable = np.isfinite(steps) & (steps > 0)
    ratio = np.divide(wide, steps, where=usable, out=np.zeros_like(wide)).astype(np.float64)
    rounded = np.copysign(np.floor(np.abs(ratio) + 0.5), ratio)
    out[...] = plan.pack(np.clip(rounded, -limit, limit).astype(np.int32))
