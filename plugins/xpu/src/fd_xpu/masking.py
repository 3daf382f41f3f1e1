"""Logits that are excluded: what the in-place ops of sampling share."""

from __future__ import annotations

import numpy as np

from fd_xpu.compute import Array, Value, f32, like
from fd_xpu.framework import paddle

MASKED = -1e10


def exclude(logits: Value, allowed: Array) -> Value | None:
    """-inf where not `allowed` (a host mask like logits); None where nothing is excluded."""
    if allowed.all():
        return None
    x = f32(logits)
    return paddle.where(like(allowed, x), x, paddle.full_like(x, float("-inf")))


def as_stored(value: float, logits: Value) -> float:
    """`value` as the logits' type holds it: -inf in float16, the nearest in bfloat16."""
    kind = str(logits.dtype).rpartition(".")[2]
    if kind == "bfloat16":
        import ml_dtypes

        return float(np.float32(value).astype(ml_dtypes.bfloat16))
    with np.errstate(over="ignore"):
        return float(np.float32(value).astype(kind))
