"""fused_add_rmsnorm: residual addition and RMS norm, both in place."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.dtype import FLOATS
from fd_core.ops.norm.rms_norm import TOLERANCE
from fd_core.ops.schema import Case, In, InOut, op


def _case(tokens: int, hidden: int, bench: bool = False, wide_weight: bool = False) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        x, residual = rng.standard_normal((2, tokens, hidden)).astype(dtype)
        weight = rng.uniform(0.5, 1.5, hidden).astype(np.float32 if wide_weight else dtype)
        return {"x": x, "residual": residual, "weight": weight, "eps": 1e-5}

    name = f"{tokens}x{hidden}" + ("-float32-weight" if wide_weight else "")
    return Case(name, args, FLOATS, bench, bytes=lambda size: 4 * size * tokens * hidden)


CASES = [_case(0, 64), _case(1, 1), _case(3, 7), _case(17, 100), _case(2, 2560)]
CASES += [_case(5, 200, wide_weight=True), _case(2, 12288)]
CASES += [_case(1, 1024, bench=True), _case(512, 1024, bench=True), _case(64, 4096, bench=True)]


@op(family="norm", cases=CASES, tolerance=TOLERANCE, rows=("x", "residual"))
def fused_add_rmsnorm(x: InOut, residual: InOut, weight: In, eps: float) -> None:
    """residual <- T(x + residual); x <- rms_norm(residual, weight, eps).

    x, residual [tokens, hidden] of one type T (float32 | bfloat16 | float16), in memory of their own,
    rows may be strided; weight [hidden] of type T or float32; `eps` >= 0. The norm reads the sum as
    it is stored in `residual` (after the rounding to T), so that the pair equals an addition followed
    by `rms_norm` bit for bit. Specification ops-quant-moe §9, family B.
    """
    total = (x.astype(np.float32) + residual.astype(np.float32)).astype(residual.dtype)
    residual[...] = total
    wide = total.astype(np.float32)
    scale = 1.0 / np.sqrt(np.mean(wide * wide, axis=-1, keepdims=True) + np.float32(eps))
    x[...] = (wide * scale * weight.astype(np.float32)).astype(x.dtype)
