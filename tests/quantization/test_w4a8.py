"""Method "w4a8": int4 groups against int8 tokens, exact within a group, groups added in order."""

from __future__ import annotations

import numpy as np
import pytest
from integer import (
    ROWS,
    SHAPES,
    Layer,
    bound,
    check_rows_alone,
    int4_weight,
    layer,
    make,
    normal,
    spec,
    token_codes,
)

from fd_core.api import dtype as dt
from fd_core.api.tensor import from_numpy

every_group = pytest.mark.parametrize("group", [32, 64, 128])
either = pytest.mark.parametrize("zero_point", [False, True], ids=["symmetric", "zero_point"])


@either
@every_group
@pytest.mark.parametrize(("depth", "columns"), SHAPES)
def test_products_are_those_of_both_codes(group: int, zero_point: bool, depth: int, columns: int) -> None:
    """Each group's exact sum is rounded to float, scaled and added: a chain of as many steps."""
    weight, bias = normal(0, (columns, depth), dt.bfloat16), normal(1, (columns,))
    one = layer(make("w4a8", group_size=group, zero_point=zero_point), weight)
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
    for zero_point in (False, True):
        methods = [make(name, zero_point=zero_point) for name in ("w4a8", "wint4")]
        ours, theirs = (layer(method, weight).packed.numpy() for method in methods)
        np.testing.assert_array_equal(ours, theirs)


@either
@every_group
def test_rows_do_not_depend_on_the_batch(group: int, zero_point: bool) -> None:
    method = make("w4a8", group_size=group, zero_point=zero_point)
    check_rows_alone(layer(method, normal(6, (300, 330), dt.bfloat16)), 330)


@every_group
def test_zero_points_cost_no_exactness(group: int) -> None:
    """Codes of tokens and weights chosen so that every product and sum is an integer float32 holds."""
    depth, rng = 2 * group, np.random.default_rng(7)
    scale = np.ones((40, 2), np.float32)
    zero = rng.integers(-128, 128, (40, 2)).astype(np.float32)
    weight = rng.integers(-8, 8, (40, depth)) - np.repeat(zero, group, axis=1)
    method = make("w4a8", group_size=group, zero_point=True)
    named = {"weight": weight.astype(np.float32), "scale": scale, "zero": zero}
    tensors = {name: from_numpy(value) for name, value in named.items()}
    packed = method.process_weights(spec(depth, 40, dt.float32), tensors)
    x = rng.integers(-126, 127, (17, depth)).astype(np.float32)
    x[:, ::group] = 127  # so that a step is 1
    np.testing.assert_array_equal(Layer(method, 40, packed)(x), x @ weight.T)
