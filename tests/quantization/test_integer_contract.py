"""What holds for every integer method alike, whatever it stores."""

from __future__ import annotations

import numpy as np
import pytest
from integer import check_threads, check_what_is_not_finite, check_zeros, layer, make, normal

from fd_core.api import dtype as dt
from fd_core.api.dtype import DType

every_method = pytest.mark.parametrize("name", ["wint8", "w8a8", "wint4", "w4a8"])


@every_method
@pytest.mark.parametrize("x_type", dt.FLOATS, ids=str)
def test_other_activation_types(name: str, x_type: DType) -> None:
    one = layer(make(name), normal(0, (40, 70), dt.bfloat16))
    x = normal(1, (5, 70), x_type)
    want = one(x.astype(np.float32))
    np.testing.assert_array_equal(one(x), want)
    np.testing.assert_array_equal(one(x, out=x_type), want.astype(x_type.numpy()))


@every_method
def test_threads_do_not_change_a_bit(name: str) -> None:
    check_threads(layer(make(name), normal(8, (1000, 700), dt.bfloat16)), 700)


@every_method
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinities_stay_in_their_place(name: str, value: float) -> None:
    weight = normal(10, (70, 90))
    clean = layer(make(name), weight)
    weight[41, 7] = value
    check_what_is_not_finite(layer(make(name), weight), clean, 41, 90)


@every_method
def test_zeros_are_exact(name: str) -> None:
    weight = normal(13, (50, 100))
    weight[33] = 0
    check_zeros(layer(make(name), weight), 33, 100)


@every_method
def test_empty_depth_gives_the_bias(name: str) -> None:
    one, bias = layer(make(name), np.empty((5, 0), np.float32)), normal(1, (5,))
    np.testing.assert_array_equal(one(np.empty((2, 0), np.float32), bias), [bias, bias])
