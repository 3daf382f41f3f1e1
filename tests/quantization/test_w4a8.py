"""Method "w4a8": int4 groups against int8 tokens, exact within a group, groups added in order."""

from __future__ import annotations

import numpy as np
import pytest
from integer import (
    ROWS,
    SHAPES,
    bound,
    check_rows_alone,
    int4_weight,
    layer,
    make,
    normal,
    token_codes,
)

from fd_core.api import dtype as dt

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


@every_group
def test_rows_do_not_depend_on_the_batch(group: int) -> None:
    check_rows_alone(layer(make("w4a8", group_size=group), normal(6, (300, 330), dt.bfloat16)), 330)
