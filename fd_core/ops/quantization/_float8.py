"""float8_e4m3fn as the quantisers here use it: 448 is the largest, what exceeds it saturates."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api import dtype as dt
from fd_core.api.tensor import Shape, TensorSpec
from fd_core.ops.checks import check
from fd_core.ops.schema import StridedSpec

Array = np.ndarray[Any, Any]

GROUP = 128
LARGEST = np.float32(448)
FLOOR = np.float32(1e-10)
E4M3 = dt.float8_e4m3fn.numpy()


def e4m3(values: Array) -> Array:
    """Nearest code, ties to even, saturating; NaN stays NaN."""
    return np.clip(values.astype(np.float32), -LARGEST, LARGEST).astype(E4M3)


def groups_of(columns: int) -> int:
    return -(-columns // GROUP)


def quantise_groups(op: str, x: Array, block_size: int, power: bool) -> tuple[Array, Array]:
    """x [..., H]: codes [..., H] and, per 128 columns, the multiplier that brings them back, float32; with
    `power` the biased exponents of powers of two, four to an int32. See per_token_quant."""
    check(block_size == GROUP, op, "block_size", GROUP, block_size)
    *lead, columns = x.shape
    groups = groups_of(columns)
    wide = np.zeros((*lead, groups * GROUP), np.float32)
    wide[..., :columns] = x
    blocks = wide.reshape(*lead, groups, GROUP)
    amax = np.fmax.reduce(np.abs(blocks), axis=-1, initial=0)
    amax = np.fmax(amax, FLOOR).astype(np.float32)
    scale = amax / LARGEST
    if power:
        bits = np.fmax(scale, FLOOR).astype(np.float32).view(np.uint32)
        exponent = (bits >> 23) + ((bits & 0x7FFFFF) != 0)
        scaled = blocks / (exponent << 23).astype(np.uint32).view(np.float32)[..., None]
        packed = np.zeros((*lead, -(-groups // 4) * 4), np.uint8)
        packed[..., :groups] = exponent
        scale = packed.view(np.int32)
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = blocks * LARGEST / amax[..., None]
    return e4m3(scaled.reshape(*lead, groups * GROUP)[..., :columns]), scale


def column_major(lead: Shape, rows: int, aligned: int, columns: int, power: bool) -> TensorSpec:
    """Scales [*lead, rows, groups] stored group by group, each `aligned` rows long."""
    groups = groups_of(columns)
    width, kind = (-(-groups // 4), dt.int32) if power else (groups, dt.float32)
    strides = (1, aligned) if not lead else (width * aligned, 1, aligned)
    return StridedSpec((*lead, rows, width), kind, strides)


def inverse(scale: Any) -> Any:
    """1 / scale, the largest float where that is infinite: zeros stay zeros."""
    with np.errstate(divide="ignore", over="ignore"):
        return np.fmin(np.float32(1) / np.float32(scale), np.finfo(np.float32).max)
