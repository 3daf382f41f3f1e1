"""Weights that lie on a grid already: their codes, scales and zero points in the order of packed weights
(csrc/include/fd/packed_weights.cuh, packed_zero.cuh)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fd_core.api import dtype as dt
from fd_core.api.tensor import Tensor, TensorSpec, from_numpy
from fd_cuda import library

if TYPE_CHECKING:
    from fd_cuda.quant import IntegerLinear

Array = np.ndarray[Any, Any]
#: Rows of a weight that are packed together, and bytes of their scales and zero points in a group.
TILE, STEP_BYTES = 16, 48
#: The largest zero point that the kernels hold.
MOST = 119


def step_spec(columns: int, groups: int) -> TensorSpec:
    """Scales and zero points of int4 weights that have some."""
    return TensorSpec((-(-columns // TILE), groups, STEP_BYTES), dt.uint8)


def scale_pairs(scale: Array, groups: int) -> Array:
    """float32 [columns, groups (or 1)] -> bfloat16 [tiles, groups, 16]: rows g and g + 8 together."""
    return _paired(scale, groups).astype(dt.bfloat16.numpy())


def step_bytes(scale: Array, zero: Array, groups: int) -> Array:
    """uint8 [tiles, groups, 48] of both, float32 [columns, groups (or 1)]; zero points as of `turned`."""
    zeros = (_paired(zero, groups) + 8).astype(np.uint8)
    return np.concatenate([scale_pairs(scale, groups).view(np.uint8), zeros], 2)


def turned(scale: Array, zero: Array) -> tuple[Array, Array]:
    """Scales and zero points for the same weights, zero points in -8 .. MOST: below, the signs of scale and
    codes are turned. Above MOST a scale grows instead, by at most 8 / 119 about the middle of the codes: of
    weights that far from zero that is 0.4 %, a rounding to bfloat16."""
    below = zero < -8
    scale, zero = np.where(below, -scale, scale), np.where(below, -1 - zero, zero)
    far = zero > MOST
    middle = np.float32(0.5)  # of the codes -8 .. 7, behind the zero point
    grown = np.where(far, scale * ((zero + middle) / (MOST + middle)), scale)
    return grown.astype(np.float32), np.minimum(zero, MOST).astype(np.float32)


def _paired(values: Array, groups: int) -> Array:
    each = np.broadcast_to(values, (len(values), groups))
    tiles = np.pad(each, ((0, -len(each) % TILE), (0, 0))).reshape(-1, 2, TILE // 2, groups)
    return np.ascontiguousarray(tiles.transpose(0, 3, 2, 1)).reshape(-1, groups, TILE)


def pack_given(method: IntegerLinear, weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(codes, scales) in device memory of a weight that lies on the grid of "scale", and "zero" if there is
    one: the codes are exactly the grid's."""
    platform = method.platform
    steps = {name: weights[name].numpy() for name in ("scale", "zero") if name in weights}
    if "zero" in steps:
        steps["scale"], steps["zero"] = turned(steps["scale"], steps["zero"])
    given = {name: platform.from_host(array) for name, array in steps.items()}
    optional = (given.get("zero"),) if method.takes_zero else ()
    codes, scales = method.packed_specs(*weights["weight"].shape)
    packed = platform.empty(codes)
    weight = copied(platform, weights["weight"])
    library.function(method.given_packer)(weight, given["scale"], *optional, packed)
    arranged = method.arranged(codes.shape[1], steps["scale"], steps.get("zero"))
    assert arranged.shape == scales.shape
    return packed, platform.from_host(arranged)


def copied(platform: Any, tensor: Tensor) -> Tensor:
    """A copy in device memory, of host or device memory."""
    made: Tensor = platform.empty(tensor.spec)
    made.copy_from(tensor)
    return made


def find_steps(method: IntegerLinear, weight: Tensor, group: int) -> dict[str, Tensor]:
    """`weight` with the "scale" and the "zero" of every group of inputs (0: of all) that suit it best."""
    platform, groups = method.platform, -(-weight.shape[1] // group) if group else 1
    spec = TensorSpec((weight.shape[0], groups), dt.float32)
    scale, zero = platform.empty(spec), platform.empty(spec)
    library.function("int4_steps")(copied(platform, weight), group, scale, zero)
    found = {"scale": scale, "zero": zero}
    return {"weight": weight, **{n: from_numpy(platform.to_host(t)) for n, t in found.items()}}
