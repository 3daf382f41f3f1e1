"""Rounding by effect: against exhaustive search, and that each part of it only lowers the loss."""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fd_core.api.quant import Grid
from fd_core.quantization import rounding
from fd_core.quantization.rounding import Moments, best_steps, round_to_grid

GRID = Grid(-8, 7, 32)
ZEROS = Grid(-8, 7, 32, (-128, 127))
either = pytest.mark.parametrize("grid", [GRID, ZEROS], ids=["symmetric", "zero_point"])


def inputs(seed: int, depth: int, tokens: int = 500) -> Any:
    """That depend on each other, as activations do."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((depth, depth)) / depth**0.5 + np.eye(depth) / 2
    return (rng.standard_normal((tokens, depth)) @ mixing).astype(np.float32)


def moments(seed: int, depth: int) -> Any:
    x = inputs(seed, depth)
    return x.T @ x


def still(h: Any) -> Moments:
    """Moments of inputs that are those of the model as it was."""
    return Moments(h, np.zeros_like(h))


def loss(weight: Any, rounded: Any, h: Any) -> Any:
    """(w - r) H (w - r)^T of every output."""
    away = (weight - rounded).astype(np.float64)
    return np.einsum("nk,kl,nl->n", away, h.astype(np.float64), away)


def nearest(weight: Any, grid: Grid) -> Any:
    parts = np.split(weight, range(grid.group, weight.shape[1], grid.group), axis=1)
    flat = [np.ones(part.shape[1], np.float32) for part in parts]
    steps = [best_steps(part.T, one, grid) for part, one in zip(parts, flat, strict=True)]
    return np.concatenate([s.nearest(p.T).T for p, s in zip(parts, steps, strict=True)], axis=1)


def weight_of(seed: int, columns: int, depth: int) -> Any:
    return np.random.default_rng(seed).standard_normal((columns, depth)).astype(np.float32)


@either
@pytest.mark.parametrize("depth", [1, 32, 70, 128])
def test_results_are_on_the_grid(depth: int, grid: Grid) -> None:
    done = round_to_grid(weight_of(0, 9, depth) + 1, still(moments(1, depth)), grid)
    scales, zeros = done.scale, done.zero
    assert scales.shape == (9, -(-depth // 32))
    np.testing.assert_array_equal(scales, scales.astype(ml_dtypes.bfloat16).astype(np.float32))
    codes = done.weight / np.repeat(scales, 32, axis=1)[:, :depth]
    np.testing.assert_array_equal(codes, np.rint(codes))
    assert (zeros is None) == (grid.zeros is None)
    if zeros is not None:
        assert zeros.any() or depth == 1
        np.testing.assert_array_equal(zeros, np.rint(zeros))
        codes = codes + np.repeat(zeros, 32, axis=1)[:, :depth]
    assert codes.min() >= grid.low
    assert codes.max() <= grid.high


def test_zero_points_serve_weights_that_are_not_about_zero() -> None:
    weight, h = weight_of(10, 40, 128) + 2, moments(11, 128)
    losses = [loss(weight, round_to_grid(weight, still(h), grid).weight, h).sum() for grid in (GRID, ZEROS)]
    assert losses[1] < 0.5 * losses[0]


@either
def test_the_effect_on_outputs_is_well_below_that_of_the_nearest(grid: Grid) -> None:
    weight, h = weight_of(2, 40, 128), moments(3, 128)
    rounded = round_to_grid(weight, still(h), grid).weight
    assert loss(weight, rounded, h).sum() < 0.5 * loss(weight, nearest(weight, grid), h).sum()


def test_outputs_are_those_on_the_inputs_as_they_were() -> None:
    """Inputs that changed in a way which follows from them: the weights make up for it, as far as rounding
    lets them."""
    weight, y = weight_of(12, 40, 128), inputs(13, 128)
    rng = np.random.default_rng(14)
    x = (y + 0.1 * y @ rng.standard_normal((128, 128)).astype(np.float32) / 128**0.5).astype(np.float32)
    found = Moments.zeros(128)
    found.add(x[:200], y[:200])
    found.add(x[200:], y[200:])
    np.testing.assert_allclose(found.second, x.T @ x, rtol=1e-4, atol=1e-2)
    away = [
        np.square(x @ round_to_grid(weight, one, GRID).weight.T - y @ weight.T).sum()
        for one in (found, still(found.second))
    ]
    assert away[0] < 0.5 * away[1]


def test_sweeps_lower_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, h = weight_of(4, 40, 96), moments(5, 96)
    found = []
    for sweeps in (0, 1, 8):
        monkeypatch.setattr(rounding, "SWEEPS", sweeps)
        found.append(loss(weight, round_to_grid(weight, still(h), GRID).weight, h).sum())
    assert found[0] > found[1] > found[2]


def test_near_the_best_of_all_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four inputs of four levels: every one of the 256 choices under the scale found."""
    monkeypatch.setattr(rounding, "DAMPING", 1e-6)
    grid = Grid(-2, 1, 4)
    weight, h = weight_of(6, 60, 4), moments(7, 4)
    done = round_to_grid(weight, still(h), grid)
    choices = np.array(list(itertools.product(range(-2, 2), repeat=4)), np.float64)
    best = [
        min(loss(np.repeat(w[None], len(choices), 0), choices * s, h))
        for w, s in zip(weight, done.scale, strict=True)
    ]
    got = loss(weight, done.weight, h)
    assert (got >= np.array(best) * (1 - 1e-6)).all()
    assert np.median(got / best) < 1.05


def test_inputs_never_seen_and_zero_weights() -> None:
    weight, h = weight_of(8, 6, 64), moments(9, 64)
    h[10], h[:, 10], weight[3] = 0, 0, 0
    rounded = round_to_grid(weight, still(h), GRID).weight
    assert np.isfinite(rounded).all()
    assert not rounded[3].any()
