"""Weights that lie on a grid already: codes exactly as given, int4 with zero points, rows looked up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("fd_cuda")
from fd_cuda import library
from fd_cuda.quant import INTEGERS

from fd_core.api import dtype as dt
from fd_core.api.quant import LinearSpec
from fd_core.api.tensor import TensorSpec, from_numpy
from fd_core.host.session import Session
from fd_core.quantization.codes import Codes
from tests.cuda.gpu import gpu_session
from tests.cuda.test_cuda_linear import (
    HALVES,
    SHAPES,
    check_packed,
    halves,
    int4_codes,
    int4_weight,
    int8_weight,
    normal,
    weight_of,
)

pytestmark = pytest.mark.device("cuda")
Array = np.ndarray[Any, Any]
groups = pytest.mark.parametrize("group", [64, 128, -1])
shapes = pytest.mark.parametrize(("columns", "depth"), SHAPES)


@pytest.fixture(scope="module")
def session() -> Session:
    return gpu_session("linear_int4_zero", "pack_int4_given", "lookup_int4_zero", "linear_int8")


def method_of(session: Session, name: str, **config: Any) -> Any:
    chosen = next(m for m in INTEGERS if m.name == name)
    return chosen(session.platform.open(0), session.platform, session.ops, config)


def codes_of(method: Any, columns: int, depth: int) -> Codes:
    """Codes all over the method's grid, sums of products with normal x near 1 in all."""
    rng, grid = np.random.default_rng(5), method.grid()
    count = -(-depth // grid.group) if grid.group else 1
    code = rng.integers(grid.low, grid.high + 1, (columns, depth)).astype(np.int8)
    most = 127 if grid.zeros else grid.high
    scale = rng.uniform(0.5, 1, (columns, count)) / (most * depth**0.5)
    scale = scale.astype(dt.bfloat16.numpy()).astype(np.float32)
    zero = rng.integers(-120, 120, (columns, count)).astype(np.int8) if grid.zeros else None
    return Codes(code, scale, zero)


def packed_of(method: Any, codes: Codes) -> list[Any]:
    columns, depth = codes.code.shape
    spec = LinearSpec(depth, columns, False, dt.bfloat16, dt.bfloat16, prefix="layer")
    weights = {"weight": codes.weight(method.grid().group), "scale": codes.scale}
    if codes.zero is not None:
        weights["zero"] = codes.zero.astype(np.float32)
    host = {name: from_numpy(np.ascontiguousarray(array)) for name, array in weights.items()}
    return list(method.process_weights(spec, host))


def zero_weight(session: Session, packed: list[Any], columns: int, depth: int, group: int) -> Array:
    """What packed_zero.cuh says that the bytes mean."""
    codes, steps = (session.platform.to_host(t) for t in packed)
    levels = int4_codes(codes, 128 if group == -1 else group)
    scale = np.ascontiguousarray(steps[..., :32]).view(dt.bfloat16.numpy()).astype(np.float64)
    zero = steps[..., 32:].astype(np.float64) - 8
    first, second = (v.reshape(*v.shape[:2], 8, 2).swapaxes(2, 3).reshape(v.shape) for v in (scale, zero))
    real = (levels - second[..., None]) * first[..., None]
    return real.transpose(0, 2, 1, 3).reshape(16 * codes.shape[0], -1)[:columns, :depth]


@halves
@groups
@shapes
def test_zero_points(session: Session, columns: int, depth: int, group: int, dtype: Any) -> None:
    """Codes and zero points exactly as given; products right and the same in every batch."""
    method = method_of(session, "wint4", group_size=group, zero_point=True)
    codes = codes_of(method, columns, depth)
    packed = packed_of(method, codes)
    real = codes.weight(method.grid().group).astype(np.float64)
    np.testing.assert_array_equal(zero_weight(session, packed, columns, depth, group), real)
    check_packed(session, "linear_int4_zero", packed, real, dtype)


@groups
@shapes
def test_int4_codes_as_given(session: Session, columns: int, depth: int, group: int) -> None:
    method = method_of(session, "wint4", group_size=group)
    codes = codes_of(method, columns, depth)
    packed = packed_of(method, codes)
    real = codes.weight(method.grid().group).astype(np.float64)
    np.testing.assert_array_equal(int4_weight(session, packed, columns, depth, group), real)


@pytest.mark.parametrize(("columns", "depth"), [(16, 64), (97, 80), (640, 4096)])
def test_int8_codes_as_given(session: Session, columns: int, depth: int) -> None:
    method = method_of(session, "wint8")
    codes = codes_of(method, columns, depth)
    packed = packed_of(method, codes)
    found = int8_weight(session, packed, columns, depth)
    np.testing.assert_array_equal(found, codes.code * codes.scale.astype(np.float64))
    rows, scales = (session.platform.to_host(t) for t in packed_of(method_of(session, "w8a8"), codes))
    np.testing.assert_array_equal(rows, codes.code)
    np.testing.assert_array_equal(scales, codes.scale[:, 0])


@groups
def test_plain_weights_to_the_nearest(session: Session, group: int) -> None:
    """With zero points the error is that without, on weights far from zero a fourth: 2.4 deviations there,
    where a group's range is some 5, of which a grid about zero spans twice the largest weight, some 10."""
    weight = weight_of(100, 1024, HALVES[0])
    spec = LinearSpec(1024, 100, False, dt.bfloat16, dt.bfloat16, prefix="layer")
    for shift, share in ((0.0, 1.1), (0.1, 0.3)):
        moved = (weight.astype(np.float32) + np.float32(shift)).astype(HALVES[0])
        losses = []
        for zero_point in (False, True):
            method = method_of(session, "wint4", group_size=group, zero_point=zero_point)
            packed = list(method.process_weights(spec, {"weight": from_numpy(moved)}))
            unpack = zero_weight if zero_point else int4_weight
            real = unpack(session, packed, 100, 1024, group)
            losses.append(np.square(real - moved.astype(np.float64)).sum())
        # Without zero points errors count alike, with them those of large weights for more.
        assert losses[1] <= share * losses[0], (shift, losses)


@halves
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("wint8", {}),
        ("w8a8", {}),
        ("wint4", {"group_size": 64}),
        ("wint4", {"group_size": 128}),
        ("wint4", {"group_size": -1}),
        ("wint4", {"group_size": 64, "zero_point": True}),
        ("wint4", {"group_size": 128, "zero_point": True}),
    ],
)
@pytest.mark.parametrize(("columns", "depth"), [(16, 64), (97, 48), (640, 4096)])
def test_lookups(
    session: Session, name: str, config: dict[str, Any], columns: int, depth: int, dtype: Any
) -> None:
    """Rows of the weight in the output's type, rounded once; ids outside the table write nothing."""
    method = method_of(session, name, **config)
    codes = codes_of(method, columns, depth)
    packed = tuple(packed_of(method, codes))
    ids = np.random.default_rng(7).integers(0, columns, 37).astype(np.int32)
    ids[:2] = 0, columns - 1
    out = session.platform.from_host(np.full((37, depth), 7, dtype))
    method.lookup(session.platform.from_host(ids), packed, out)
    want = codes.weight(method.grid().group)[ids].astype(dtype)
    np.testing.assert_array_equal(session.platform.to_host(out), want)
    out = session.platform.from_host(np.full((2, depth), 7, dtype))
    far = np.array([-1, columns + 16], np.int64)
    method.lookup(session.platform.from_host(far), packed, out)
    np.testing.assert_array_equal(session.platform.to_host(out), np.full((2, depth), 7, dtype))


def test_wrong_tensors_are_refused(session: Session) -> None:
    method = method_of(session, "wint4", group_size=64, zero_point=True)
    packed = packed_of(method, codes_of(method, 50, 64))
    put = session.platform.from_host
    x, out = put(normal(2, 4, 64, dtype=HALVES[0])), put(np.zeros((4, 50), np.float32))
    with pytest.raises(ValueError, match=r"linear_int4_zero\.steps: want size"):
        library.function("linear_int4_zero")(x, packed[0], packed[1].slice(0, 2), None, out)
    with pytest.raises(TypeError, match=r"linear_int4_zero\.x: want bfloat16 or float16, have float32"):
        library.function("linear_int4_zero")(put(normal(2, 4, 64)), *packed, None, out)
    weight, scale = put(normal(1, 50, 64)), put(np.ones((50, 2), np.float32))
    with pytest.raises(ValueError, match=r"pack_int4_given\.scales: want size"):
        library.function("pack_int4_given")(weight, scale, None, packed[0])
    with pytest.raises(TypeError, match=r"lookup_int4_zero\.out: want bfloat16 or float16"):
        method.lookup(put(np.zeros(4, np.int32)), tuple(packed), put(np.zeros((4, 64), np.float32)))
    empty = session.platform.empty(TensorSpec((0, 64), dt.bfloat16))
    method.lookup(put(np.zeros(0, np.int32)), tuple(packed), empty)
