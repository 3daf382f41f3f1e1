"""Method "w4a8": int4 groups against int8 tokens, exact within a group, groups added in order."""

from __future__ import annotations

import numpy as np
import pytest
from integer import (
    ROWS,
    SHAPES,
    bound,
    check_rows_alone,
    check_threads,
    check_what_is_not_finite,
    check_zeros,
    int4_weight,
    layer,
    make,
    normal,
    token_codes,
)

from fd_core.api import dtype as dt
from fd_core.api.dtype import DType

every_group = pytest.mark.parametrize("group", [32, 64, 128])


@every_group
@pytest.mark.parametrize(("depth", "columns"), SHAPES)
def test_products_are_those_of_both_codes(group: int, depth: int, columns: int) -> None:
    """Each group's exact sum is rounded to float, scaled and added: a chain of as many steps."""
    weight, bias = normal(0, (columns, depth), dt.bfloat16), normal(1, (columns,))
    one = layer(make("w4a8", group_size=group), weight)
    codes, scale = int4_weight(one.packed, columns, depth, group)
    dequantised = codes * np.repeat(scale, group, axis=1)[:, :depth].astype(np.float64)
    for rows in ROWS:
        x = normal(2, (rows, depth))
        tokens, steps = token_codes(x, group)
        want = (tokens * steps) @ dequantised.T + bias
        limit = bound(tokens * steps, dequantised, scale.shape[1] + 4) + 2.0**-23 * np.abs(want)
        assert (np.abs(one(x, bias) - want) <= limit).all()


def test_it_packs_as_wint4_does() -> None:
    weight = normal(3, (70, 200), dt.bfloat16)
    ours, theirs = (layer(make(name), weight).packed.numpy() for name in ("w4a8", "wint4"))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("x_type", dt.FLOATS, ids=str)
def test_other_activation_types(x_type: DType) -> None:
    one = layer(make("w4a8"), normal(0, (40, 70), dt.bfloat16))
    x = normal(1, (5, 70), x_type)
    want = one(x.astype(np.float32))
    np.testing.assert_array_equal(one(x), want)
    np.testing.assert_array_equal(one(x, out=x_type), want.astype(x_type.numpy()))


@every_group
def test_rows_do_not_depend_on_the_batch(group: int) -> None:
    check_rows_alone(layer(make("w4a8", group_size=group), normal(6, (300, 330), dt.bfloat16)), 330)


def test_threads_do_not_change_a_bit() -> None:
    check_threads(layer(make("w4a8"), normal(8, (1000, 700), dt.bfloat16)), 700)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinities_stay_in_their_place(value: float) -> None:
    weight = normal(10, (70, 90))
    clean = layer(make("w4a8"), weight)
    weight[41, 7] = value
    check_what_is_not_finite(layer(make("w4a8"), weight), clean, 41, 90)


def test_zeros_are_exact() -> None:
    weight = normal(13, (50, 100))
    weight[33] = 0
    check_zeros(layer(make("w4a8"), weight), 33, 100)


@pytest.mark.parametrize("name", ["wint4", "w4a8"])
def test_empty_depth_gives_the_bias(name: str) -> None:
    one, bias = layer(make(name), np.empty((5, 0), np.float32)), normal(1, (5,))
    np.testing.assert_array_equal(one(np.empty((2, 0), np.float32), bias), [bias, bias])
