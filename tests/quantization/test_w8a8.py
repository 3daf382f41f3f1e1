"""Method "w8a8": int8 codes of weights and of each token, summed exactly in int32 within a group."""

from __future__ import annotations

import numpy as np
import pytest
from integer import (
    ROWS,
    SHAPES,
    bound,
    check_rows_alone,
    int8_weight,
    layer,
    make,
    normal,
    token_codes,
)

from fd_core.api import dtype as dt
from fd_core.api.dtype import DType
from fd_core.api.tensor import from_numpy

every_type = pytest.mark.parametrize("kind", dt.FLOATS, ids=str)
every_shape = pytest.mark.parametrize(("depth", "columns"), SHAPES)


GROUP = 128  # activations that share a scale


@every_type
@every_shape
def test_products_are_those_of_both_codes(kind: DType, depth: int, columns: int) -> None:
    """Each group's sum is exact; three roundings bring it to the chain of groups, two follow."""
    weight, bias = normal(0, (columns, depth), kind), normal(1, (columns,))
    one = layer(make("w8a8"), weight)
    codes, scale = int8_weight(one.packed, columns, depth)
    dequantised = codes * scale[:, None].astype(np.float64)
    for rows in ROWS:
        x = normal(2, (rows, depth))
        tokens, steps = token_codes(x, GROUP)
        exact = (tokens * steps) @ dequantised.T
        for shift in (None, bias):
            want = exact if shift is None else exact + shift
            limit = bound(tokens * steps, dequantised, depth // GROUP + 4) + 2.0**-23 * np.abs(want)
            assert (np.abs(one(x, shift) - want) <= limit).all()


@every_shape
def test_near_the_float_product(depth: int, columns: int) -> None:
    """Half a step of either side at every term."""
    weight, x = normal(3, (columns, depth)), normal(4, (9, depth))
    one = layer(make("w8a8"), weight)
    codes, scale = int8_weight(one.packed, columns, depth)
    dequantised = codes * scale[:, None].astype(np.float64)
    _, steps = token_codes(x, GROUP)
    away = 0.501 * steps @ np.abs(dequantised).T
    want = x.astype(np.float64) @ dequantised.T
    assert (np.abs(one(x) - want) <= away + bound(x, dequantised, 8)).all()


def test_the_largest_sums_are_exact() -> None:
    """Every code 127 or -127: sums at the limits of int16 pairs, and a deep chain of groups."""
    depth = 65536
    weight = np.ones((33, depth), np.float32)
    weight[1] = -1
    x = np.ones((3, depth), np.float32)
    x[1] = -1
    x[2, ::2] = -1
    one = layer(make("w8a8"), weight)
    got, many = one(x), one(np.tile(x, (10, 1)))
    assert many.tobytes() == np.tile(got, (10, 1)).tobytes()
    want = np.ones((3, 33)) * np.array([[1], [-1], [0]]) * depth
    want[:, 1] *= -1
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_rows_that_are_tiny_count_as_zero() -> None:
    one, bias = layer(make("w8a8"), normal(5, (40, 64))), normal(6, (40,))
    x = np.full((3, 64), 1e-38, np.float32)
    x[2] = 1e-45
    np.testing.assert_array_equal(one(x, bias), [bias] * 3)


def test_rows_do_not_depend_on_the_batch() -> None:
    check_rows_alone(layer(make("w8a8"), normal(6, (300, 330), dt.bfloat16)), 330)


def test_refusals() -> None:
    make("w8a8")
    from fd_cpu import library

    x, out = from_numpy(np.ones((2, 8), np.float32)), from_numpy(np.ones((2, 3), np.float32))
    scale = from_numpy(np.ones(3, np.float32))
    short, codes = (from_numpy(np.ones((1, n, 32, 4), np.int8)) for n in (1, 2))
    for kernel in ("linear_int8", "linear_int8_dynamic"):
        call = getattr(library, kernel)
        with pytest.raises(ValueError, match=rf"{kernel}\.packed: want size 2 in dimension 1"):
            call(x, short, scale, None, out)
        with pytest.raises(TypeError, match=rf"{kernel}\.packed: want dtype int8"):
            call(x, from_numpy(np.ones((1, 2, 32, 4), np.uint8)), scale, None, out)
        with pytest.raises(ValueError, match=rf"{kernel}\.scale: want size 3"):
            call(x, codes, from_numpy(np.ones(4, np.float32)), None, out)
