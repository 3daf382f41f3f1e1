"""weight_quantize: a linear weight to int8 or int4 codes in the mixed product's order."""

from __future__ import annotations

import numpy as np

from fd_xpu.call import PaddleKernel, rounded
from fd_xpu.codes import LIMITS, order
from fd_xpu.compute import Array, Value, f32, host, like


@PaddleKernel
def weight_quantize(x: Value, algo: str, arch: int, group_size: int) -> tuple[Value, Value]:
    """Once, while weights load: on the host."""
    plan = order("weight_quantize", algo, arch, group_size, *x.shape)
    wide, limit = host(f32(x)), LIMITS[algo]
    groups = [wide[k : k + plan.step] for k in range(0, plan.depth, plan.step)]
    most = np.stack([np.abs(part).max(axis=0) for part in groups]) / np.float32(limit)
    scale = rounded(like(most.astype(np.float32), x), x.dtype)
    steps = np.repeat(host(f32(scale)), plan.step, axis=0)[: plan.depth]
    stored = plan.packed(codes(wide, steps, limit))
    return like(stored, x), scale.reshape([-1]) if group_size < 0 else scale


def codes(wide: Array, steps: Array, limit: int) -> Array:
    """x / scale, nearest, ties away from zero; 0 where the scale is zero or not finite."""
    usable = np.isfinite(steps) & (steps > 0)
    ratio = np.where(usable, wide / np.where(usable, steps, np.float32(1)), np.float32(0)).astype(
        np.float64
    )
    nearest = np.copysign(np.floor(np.abs(ratio) + 0.5), ratio)
    return np.asarray(np.clip(nearest, -limit, limit).astype(np.int32))
