"""swigluoai: the clamped gated units of GPT-OSS."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.dtype import FLOATS
from fd_core.api.tensor import TensorSpec
from fd_core.ops.activation.silu import TOLERANCE
from fd_core.ops.checks import check
from fd_core.ops.schema import Array, Case, In, Out, op


def _case(rows: int, width: int, kind: str, bench: bool = False) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        x = (rng.standard_normal((rows, width)) * 5).astype(dtype)
        return {"x": x, "alpha": 1.702, "limit": 7.0, "type": kind}

    return Case(
        f"{rows}x{width}-{kind}", args, FLOATS, bench, bytes=lambda size: 3 * size * rows * width // 2
    )


_SHAPES = ((0, 8), (1, 2), (3, 14), (17, 200))
CASES = [_case(*shape, kind) for shape in _SHAPES for kind in ("interleave", "halves")]
CASES += [_case(64, 5760, "interleave", bench=True)]


def _sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.asarray(1.0 / (1.0 + np.exp(-x)))


def _infer(x: TensorSpec, alpha: float, limit: float, type: str) -> list[TensorSpec]:
    return [TensorSpec((x.shape[0], x.shape[1] // 2), x.dtype)]


@op(family="activation", infer=_infer, cases=CASES, tolerance=TOLERANCE, rows=("x", "out"))
def swigluoai(x: In, alpha: float, limit: float, type: str, out: Out) -> None:
    """Two different functions, chosen by `type`; float32 inside, one rounding.

    "interleave": gate = even columns, up = odd columns; g = min(gate, limit),
    u = clip(up, -limit, limit); out = (u + 1) g sigmoid(alpha g).
    Any other type: gate = first half, up = second half; out = up gate sigmoid(clip(alpha gate,
    -limit, limit)): no "+ 1", and neither factor is clipped.

    x [M, 2I] float32 | bfloat16 | float16, rows may be strided; out [M, I]; limit >= 0. Usual values:
    alpha 1.702, limit 7. Specification ops-quant-moe §9.
    """
    check(x.shape[1] % 2 == 0, "swigluoai", "x", "an even last dimension", x.shape)
    check(limit >= 0, "swigluoai", "limit", ">= 0", limit)
    wide, half = x.astype(np.float64), x.shape[1] // 2
    if type == "interleave":
        gate, up = np.minimum(wide[:, ::2], limit), np.clip(wide[:, 1::2], -limit, limit)
        result = (up + 1.0) * gate * _sigmoid(alpha * gate)
    else:
        gate, up = wide[:, :half], wide[:, half:]
        result = up * gate * _sigmoid(np.clip(alpha * gate, -limit, limit))
    out[...] = result.astype(np.float32).astype(out.dtype)
