"""Method "wint8": codes within half a step of the weights, products within rounding of the codes'."""

from __future__ import annotations

from typing import Any

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
    spec,
)

from fd_core.api import dtype as dt
from fd_core.api.dtype import DType
from fd_core.api.tensor import TensorSpec

every_type = pytest.mark.parametrize("kind", dt.FLOATS, ids=str)
every_shape = pytest.mark.parametrize(("depth", "columns"), SHAPES)


@every_type
@every_shape
def test_codes_are_the_nearest(kind: DType, depth: int, columns: int) -> None:
    weight = normal(0, (columns, depth), kind)
    one = layer(make("wint8"), weight)
    codes, scale = int8_weight(one.packed, columns, depth)
    wide = weight.astype(np.float64)
    np.testing.assert_allclose(scale, np.abs(wide).max(1) / 127, rtol=1e-6)
    away = np.abs(codes * scale[:, None].astype(np.float64) - wide)
    assert (away <= scale[:, None] * (0.5 + 1e-4)).all()
    assert (np.abs(codes).max(1) == 127).all()


@every_type
@every_shape
def test_products_are_those_of_the_codes(kind: DType, depth: int, columns: int) -> None:
    weight, bias = normal(0, (columns, depth), kind), normal(1, (columns,))
    one = layer(make("wint8"), weight)
    codes, scale = int8_weight(one.packed, columns, depth)
    dequantised = codes * scale[:, None].astype(np.float64)
    for rows in ROWS:
        x = normal(2, (rows, depth))
        for shift in (None, bias):
            want = x.astype(np.float64) @ dequantised.T + (0 if shift is None else shift)
            limit = bound(x, dequantised, depth) + 2.0**-23 * np.abs(want)
            assert (np.abs(one(x, shift) - want) <= limit).all()


def test_it_asks_for_the_plain_weight() -> None:
    method = make("wint8")
    assert method.create_weights(spec(100, 33)) == {"weight": TensorSpec((33, 100), dt.bfloat16)}
    assert method.supports(spec(100, 33), method.device).ok
    verdict = method.supports(spec(8, 8, dt.int8), method.device)
    assert "layers.0.mlp.weight: want float32 | float16 | bfloat16, have int8" in str(verdict)


@pytest.mark.parametrize("config", [{}, {"forms": {"wint8": "int8-tiles-9"}}, {"forms": {"wint4": "x"}}])
def test_weights_stored_in_another_form_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"'wint8': want weights stored as 'int8-panels-1' \(forms\), or"):
        make("wint8", is_quantized=True, **config)


@every_type
def test_rows_do_not_depend_on_the_batch(kind: DType) -> None:
    check_rows_alone(layer(make("wint8"), normal(6, (300, 330), kind)), 330)
