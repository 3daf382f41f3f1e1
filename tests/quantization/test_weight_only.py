"""A weight-only layer through the public ops: what is made for a 16-bit weight, and what it computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fd_core
from fd_core.ops import weight_dequantize, weight_only_linear, weight_quantize

OUT, IN = 32, 64
KINDS = ("int8", "int4")


class Layer:
    """weight_quantize once, weight_only_linear often; int4 only where int4 was asked for."""

    def __init__(self, weight: Any, bias: Any, kind: str, group_size: int = -1) -> None:
        self.bias, self.kind, self.group_size = bias, kind, group_size
        self.codes, self.scale = weight_quantize(weight, f"weight_only_{kind}", None, group_size)

    def __call__(self, x: Any) -> Any:
        return weight_only_linear(x, self.codes, self.bias, self.scale, self.kind, None, self.group_size)

    def dequantised(self) -> Any:
        algo = f"weight_only_{self.kind}"
        return weight_dequantize(self.codes, self.scale, algo, group_size=self.group_size)


def random(seed: int, *shape: int) -> Any:
    return (np.random.default_rng(seed).standard_normal(shape) / 8).astype(np.float16)


@pytest.fixture(params=KINDS)
def layer(request: pytest.FixtureRequest) -> Layer:
    return Layer(random(0, IN, OUT), random(1, OUT), request.param)


def test_parameters(layer: Layer) -> None:
    """[out, in], the first dimension halved for int4; a scale per output in the layer's type."""
    rows = OUT if layer.kind == "int8" else OUT // 2
    assert (layer.codes.shape, layer.codes.dtype) == ((rows, IN), np.int8)
    assert (layer.scale.shape, layer.scale.dtype) == ((OUT,), np.float16)


def test_apply_agrees_with_the_dequantised_reference(layer: Layer) -> None:
    x = random(2, 2, IN)
    got = layer(x)
    assert (got.shape, got.dtype) == ((2, OUT), np.float16)
    assert not np.allclose(got, 0)
    want = x.astype(np.float32) @ layer.dequantised().astype(np.float32) + layer.bias.astype(np.float32)
    np.testing.assert_allclose(got.astype(np.float32), want, rtol=1e-2, atol=1e-2)


def test_the_weight_survives(layer: Layer) -> None:
    weight = random(0, IN, OUT).astype(np.float32)
    steps = layer.scale.astype(np.float32)
    assert (np.abs(layer.dequantised().astype(np.float32) - weight) <= 0.55 * steps + 1e-3).all()


def test_without_a_bias_none_is_added() -> None:
    with_bias, without = (Layer(random(0, IN, OUT), b, "int8") for b in (random(1, OUT), None))
    x = random(2, 3, IN)
    bias = with_bias.bias.astype(np.float32)
    np.testing.assert_allclose(
        with_bias(x).astype(np.float32), without(x).astype(np.float32) + bias, atol=2e-3
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group", [64, 128])
def test_groups_lower_the_error(kind: str, group: int) -> None:
    weight = random(3, 256, OUT) * np.exp2(np.arange(256) // 64)[:, None].astype(np.float16)
    away = [
        np.abs(Layer(weight, None, kind, g).dequantised().astype(np.float32) - weight).mean()
        for g in (-1, group)
    ]
    assert away[1] < 0.8 * away[0]


def test_none_is_the_default_of_an_attribute() -> None:
    weight = random(0, IN, OUT)
    given, left = weight_quantize(weight, None, None, None), weight_quantize(weight)
    for a, b in zip(given, left, strict=True):
        np.testing.assert_array_equal(a, b)


def test_runs_on_the_current_platform() -> None:
    assert fd_core.current_platform is not None
