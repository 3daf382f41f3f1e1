"""What holds for every integer method alike, whatever it stores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from integer import check_threads, check_what_is_not_finite, check_zeros, layer, make, normal, spec

from fd_core.api import dtype as dt
from fd_core.api.dtype import DType
from fd_core.api.quant import QuantMethod
from fd_core.api.tensor import from_numpy

#: Methods by name; with zero points where -zp follows.
every_method = pytest.mark.parametrize("name", ["wint8", "w8a8", "wint4", "w4a8", "wint4-zp", "w4a8-zp"])


def made(name: str, **config: Any) -> QuantMethod:
    plain, _, suffix = name.partition("-")
    return make(plain, **config, **({"zero_point": True} if suffix else {}))


@every_method
@pytest.mark.parametrize("x_type", dt.FLOATS, ids=str)
def test_other_activation_types(name: str, x_type: DType) -> None:
    one = layer(made(name), normal(0, (40, 70), dt.bfloat16))
    x = normal(1, (5, 70), x_type)
    want = one(x.astype(np.float32))
    np.testing.assert_array_equal(one(x), want)
    np.testing.assert_array_equal(one(x, out=x_type), want.astype(x_type.numpy()))


@every_method
def test_threads_do_not_change_a_bit(name: str) -> None:
    check_threads(layer(made(name), normal(8, (1000, 700), dt.bfloat16)), 700)


@every_method
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinities_stay_in_their_place(name: str, value: float) -> None:
    weight = normal(10, (70, 90))
    clean = layer(made(name), weight)
    weight[41, 7] = value
    check_what_is_not_finite(layer(made(name), weight), clean, 41, 90)


@every_method
def test_zeros_are_exact(name: str) -> None:
    weight = normal(13, (50, 100))
    weight[33] = 0
    check_zeros(layer(made(name), weight), 33, 100)


@every_method
def test_empty_depth_gives_the_bias(name: str) -> None:
    one, bias = layer(made(name), np.empty((5, 0), np.float32)), normal(1, (5,))
    np.testing.assert_array_equal(one(np.empty((2, 0), np.float32), bias), [bias, bias])


@every_method
@pytest.mark.parametrize("x_type", dt.FLOATS, ids=str)
def test_rows_are_looked_up(name: str, x_type: DType) -> None:
    """A row of the table is what its column contributes: the product with a unit vector, exactly."""
    weight = normal(14, (70, 100), dt.bfloat16)
    one, method = layer(made(name), weight), made(name.replace("w4a8", "wint4").replace("w8a8", "wint8"))
    plain = layer(method, weight)(np.eye(100, dtype=np.float32)).T
    ids = np.array([0, 69, 33, 33], np.int32)
    out = np.full((4, 100), 7, x_type.numpy())
    one.method.lookup(from_numpy(ids), one.packed, from_numpy(out))
    np.testing.assert_array_equal(out, plain[ids].astype(x_type.numpy()))
    with pytest.raises(ValueError, match=r"ids: want indices in \[0, .*have 200 at position 1"):
        one.method.lookup(from_numpy(np.array([1, 200])), one.packed, from_numpy(out[:2]))


@every_method
def test_stored_weights_are_taken_back_in_place(name: str) -> None:
    method = made(name)
    one = layer(method, normal(15, (70, 100), dt.bfloat16))
    stored = method.store(spec(100, 70), one.packed)
    assert {k: v.spec for k, v in stored.items()} == method.stored_weights(spec(100, 70))
    kept = {}
    for key, value in stored.items():
        array = value.numpy().copy()
        array.flags.writeable = False
        kept[key] = from_numpy(array)
    again = made(name, is_quantized=True, forms={method.name: method.form})
    assert again.stored
    packed = again.adopt(spec(100, 70), kept)
    parts = packed if isinstance(packed, tuple) else (packed,)
    assert {part.ptr for part in parts} == {value.ptr for value in kept.values()}
    x = normal(16, (5, 100))
    out = np.empty((5, 70), np.float32)
    again.apply(from_numpy(x), packed, None, from_numpy(out))
    np.testing.assert_array_equal(out, one(x))
