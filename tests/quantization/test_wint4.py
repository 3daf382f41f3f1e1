"""Method "wint4": groups of inputs with a bfloat16 scale each, codes -8 .. 7 with or without a zero point.

Products are float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from integer import (
    ROWS,
    SHAPES,
    bound,
    check_rows_alone,
    int4_parts,
    int4_weight,
    layer,
    make,
    normal,
    spec,
)

from fd_core.api import dtype as dt
from fd_core.api.dtype import DType
from fd_core.api.tensor import TensorSpec, empty_host, from_numpy

every_type = pytest.mark.parametrize("kind", dt.FLOATS, ids=str)
every_shape = pytest.mark.parametrize(("depth", "columns"), SHAPES)
every_group = pytest.mark.parametrize("group", [32, 64, 128])
either = pytest.mark.parametrize("zero_point", [False, True], ids=["symmetric", "zero_point"])


def spread(scale: Any, depth: int, group: int) -> Any:
    """The scale of every weight [N, K]."""
    return np.repeat(scale, group, axis=1)[:, :depth].astype(np.float64)


def weights(part: Any) -> Any:
    """What the errors of a group count: 1, and the magnitudes over the root of their mean square."""
    return 1 + np.abs(part) / np.sqrt(np.square(part).mean(1, keepdims=True))


@every_type
@every_group
@every_shape
def test_no_code_is_worse_than_the_plain_rule(kind: DType, group: int, depth: int, columns: int) -> None:
    """Weighted squares of every group: at most those of absmax / 7 (its bfloat16 rounding apart)."""
    weight = normal(0, (columns, depth), kind)
    codes, scale = int4_weight(layer(make("wint4", group_size=group), weight).packed, columns, depth, group)
    assert codes.min() >= -8
    assert codes.max() <= 7
    wide, steps = weight.astype(np.float64), spread(scale, depth, group)
    starts = range(0, depth, group)
    plain = np.stack([np.abs(wide[:, k : k + group]).max(1) / 7 for k in starts], axis=1)
    plain = plain.astype(np.float32).astype(dt.bfloat16.numpy()).astype(np.float64)
    simple = np.clip(np.rint(wide / spread(plain, depth, group)), -7, 7) * spread(plain, depth, group)
    for k in starts:
        part = slice(k, k + group)
        counts = weights(wide[:, part])
        ours = ((codes * steps - wide)[:, part] ** 2 * counts).sum(1)
        assert (ours <= ((simple - wide)[:, part] ** 2 * counts).sum(1) * (1 + 1e-4) + 1e-12).all()


@either
@every_group
@every_shape
def test_products_are_those_of_the_codes(group: int, zero_point: bool, depth: int, columns: int) -> None:
    weight, bias = normal(0, (columns, depth), dt.bfloat16), normal(1, (columns,))
    one = layer(make("wint4", group_size=group, zero_point=zero_point), weight)
    codes, scale = int4_weight(one.packed, columns, depth, group)
    dequantised = codes * spread(scale, depth, group)
    for rows in ROWS:
        x = normal(2, (rows, depth))
        for shift in (None, bias):
            want = x.astype(np.float64) @ dequantised.T + (0 if shift is None else shift)
            limit = bound(x, dequantised, depth) + 2.0**-23 * np.abs(want)
            assert (np.abs(one(x, shift) - want) <= limit).all()


def test_the_group_is_an_option() -> None:
    assert make("wint4").create_weights(spec(100, 33)) == {"weight": TensorSpec((33, 100), dt.bfloat16)}
    sizes = [layer(make("wint4", group_size=g), normal(0, (32, 128))).packed.nbytes for g in (32, 64, 128)]
    assert sizes == [2048 + 4 * 64, 2048 + 2 * 64, 2048 + 64]
    for wrong in (16, 0, -2, "64", 64.0, True):
        with pytest.raises(ValueError, match=r"'wint4': want group_size 32 \| 64 \| 128 \| -1, have"):
            make("wint4", group_size=wrong)


@either
@every_group
def test_rows_do_not_depend_on_the_batch(group: int, zero_point: bool) -> None:
    method = make("wint4", group_size=group, zero_point=zero_point)
    check_rows_alone(layer(method, normal(6, (300, 330), dt.bfloat16)), 330)


def test_packing_refuses_another_shape() -> None:
    make("wint4")
    from fd_cpu import library

    weight = from_numpy(np.ones((3, 70), np.float32))
    for shape, why in [
        ((1, 2, 1000), "want groups of 32, 64 or 128"),
        ((2, 2, 1088), "want size 1 in dimension 0"),
        ((1, 1, 1088), "want size 2 in dimension 1"),
    ]:
        with pytest.raises(ValueError, match=rf"pack_int4_weight\.packed: {why}"):
            library.pack_int4_weight(weight, None, None, False, empty_host(TensorSpec(shape, dt.uint8)))


def test_zero_points_are_an_option() -> None:
    sizes = [
        layer(make("wint4", group_size=g, zero_point=True), normal(0, (32, 128))).packed.nbytes
        for g in (32, 64, 128)
    ]
    assert sizes == [2048 + 4 * 96, 2048 + 2 * 96, 2048 + 96]
    assert make("wint4").form != make("wint4", zero_point=True).form
    for wrong in (1, "true", None):
        with pytest.raises(ValueError, match=r"'wint4': want zero_point true \| false, have"):
            make("wint4", zero_point=wrong)


@every_group
@every_shape
def test_no_group_is_worse_with_a_zero_point(group: int, depth: int, columns: int) -> None:
    """The symmetric steps are among those tried; sums of squares differ by the order of their terms."""
    weight = normal(20, (columns, depth)) + normal(21, (columns, 1))
    wide, losses = weight.astype(np.float64), []
    for zero_point in (False, True):
        method = make("wint4", group_size=group, zero_point=zero_point)
        codes, scale = int4_weight(layer(method, weight).packed, columns, depth, group)
        away = np.square(codes * spread(scale, depth, group) - wide)
        starts = range(0, depth, group)
        counts = np.concatenate([weights(wide[:, k : k + group]) for k in starts], axis=1)
        losses.append(np.add.reduceat(away * counts, starts, axis=1))
    assert (losses[1] <= losses[0] * (1 + 1e-4) + 1e-12).all()
    assert losses[1].sum() < 0.9 * losses[0].sum() or depth < 4


@either
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_weight(zero_point: bool, data: st.DataObject) -> None:
    """No element is further from its value than half a step, or than what the codes' ends cut off."""
    group = data.draw(st.sampled_from([32, 64, 128]))
    depth, columns = data.draw(st.integers(1, 140)), data.draw(st.integers(1, 40))
    scale, shift = 10.0 ** data.draw(st.integers(-25, 25)), data.draw(st.floats(-20, 20))
    weight = (normal(data.draw(st.integers(0, 99)), (columns, depth)) + np.float32(shift)) * np.float32(
        scale
    )
    packed = layer(make("wint4", group_size=group, zero_point=zero_point), weight).packed
    codes, zeros, scales = int4_parts(packed, group)
    steps = spread(scales, depth, group)
    ends = [
        ((e - zeros) * scales).repeat(group, axis=1)[:columns, :depth].astype(np.float64) for e in (-8, 7)
    ]
    cut = np.clip(weight.astype(np.float64), np.minimum(*ends), np.maximum(*ends))
    got = ((codes - zeros.repeat(group, axis=1))[:, :depth] * steps)[:columns]
    assert (np.abs(got - cut) <= np.abs(steps[:columns]) * 0.5001 + np.abs(weight) * 2.0**-20).all()


def test_a_column_may_share_one_scale() -> None:
    """group_size -1: the stored groups of 128 all have the scale that is best for the column."""
    weight = normal(14, (33, 300))
    one = layer(make("wint4", group_size=-1), weight)
    _, scale = int4_weight(one.packed, 33, 300, 128)
    assert scale.shape == (33, 3)
    assert (scale == scale[:, :1]).all()
    _, zeros, scales = int4_parts(
        layer(make("wint4", group_size=-1, zero_point=True), weight + 1).packed, 128
    )
    assert (zeros == zeros[:, :1]).all()
    assert (scales == scales[:, :1]).all()
    assert zeros[:33].any()
    plain = np.abs(weight).max(1) / 7
    assert (np.abs(np.abs(scale[:, 0]) / plain - 0.85) < 0.35).all()


@either
@every_group
def test_given_scales_are_used(group: int, zero_point: bool) -> None:
    """Weights that lie on a grid come back as they are, whatever the best scale would have been."""
    rng = np.random.default_rng(15)
    groups = -(-300 // group)
    scale = rng.uniform(0.5, 2, (40, groups)).astype(dt.bfloat16.numpy()).astype(np.float32)
    codes = rng.integers(-3, 4, (40, 300))
    zeros = rng.integers(-100, 100, (40, groups)) * zero_point
    codes = codes - np.repeat(zeros, group, axis=1)[:, :300]
    weight = (codes * spread(scale, 300, group)).astype(np.float32)
    method = make("wint4", group_size=group, zero_point=zero_point)
    tensors = {"weight": from_numpy(weight), "scale": from_numpy(scale)}
    if zero_point:
        tensors["zero"] = from_numpy(zeros.astype(np.float32))
    packed = method.process_weights(spec(300, 40, dt.float32), tensors)
    got, steps = int4_weight(packed, 40, 300, group)
    np.testing.assert_array_equal(got, codes)
    np.testing.assert_array_equal(steps, scale)


def test_given_scales_of_another_shape_are_refused() -> None:
    weight, groups = from_numpy(normal(0, (40, 300))), from_numpy(normal(0, (40, 5)))
    for more in ({"zero": groups}, {"scale": groups, "zero": groups}):
        with pytest.raises(ValueError, match=r"pack_int4_weight\.zero: want none without a scale and room"):
            make("wint4").process_weights(spec(300, 40, dt.float32), {"weight": weight, **more})
    tensors = {"weight": weight, "scale": from_numpy(normal(0, (40, 4)))}
    with pytest.raises(ValueError, match=r"pack_int4_weight\.scale: want size 5 in dimension 1"):
        make("wint4").process_weights(spec(300, 40, dt.float32), tensors)
