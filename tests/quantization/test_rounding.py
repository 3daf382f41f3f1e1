"""Rounding by effect: against exhaustive search, and that each part of it only lowers the loss."""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fd_core.api.quant import Grid
from fd_core.quantization import rounding
from fd_core.quantization.rounding import best_scales, round_to_grid

GRID = Grid(-8, 7, 32)


def moments(seed: int, depth: int, tokens: int = 500) -> Any:
    """Of inputs that depend on each other, as activations do."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((depth, depth)) / depth**0.5 + np.eye(depth) / 2
    x = rng.standard_normal((tokens, depth)) @ mixing
    return (x.T @ x).astype(np.float32)


def loss(weight: Any, rounded: Any, h: Any) -> Any:
    """(w - r) H (w - r)^T of every output."""
    away = (weight - rounded).astype(np.float64)
    return np.einsum("nk,kl,nl->n", away, h.astype(np.float64), away)


def nearest(weight: Any, grid: Grid) -> Any:
    parts = np.split(weight, range(grid.group, weight.shape[1], grid.group), axis=1)
    flat = [np.ones(part.shape[1], np.float32) for part in parts]
    scales = [best_scales(part.T, one, grid)[:, None] for part, one in zip(parts, flat, strict=True)]
    rounded = [np.clip(np.rint(p / s), grid.low, grid.high) * s for p, s in zip(parts, scales, strict=True)]
    return np.concatenate(rounded, axis=1)


def weight_of(seed: int, columns: int, depth: int) -> Any:
    return np.random.default_rng(seed).standard_normal((columns, depth)).astype(np.float32)


@pytest.mark.parametrize("depth", [1, 32, 70, 128])
def test_results_are_on_the_grid(depth: int) -> None:
    rounded, scales = round_to_grid(weight_of(0, 9, depth), moments(1, depth), GRID)
    assert scales.shape == (9, -(-depth // 32))
    np.testing.assert_array_equal(scales, scales.astype(ml_dtypes.bfloat16).astype(np.float32))
    codes = rounded / np.repeat(scales, 32, axis=1)[:, :depth]
    np.testing.assert_array_equal(codes, np.rint(codes))
    assert codes.min() >= GRID.low
    assert codes.max() <= GRID.high


def test_the_effect_on_outputs_is_well_below_that_of_the_nearest() -> None:
    weight, h = weight_of(2, 40, 128), moments(3, 128)
    rounded, _ = round_to_grid(weight, h, GRID)
    assert loss(weight, rounded, h).sum() < 0.5 * loss(weight, nearest(weight, GRID), h).sum()


def test_sweeps_lower_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, h = weight_of(4, 40, 96), moments(5, 96)
    found = []
    for sweeps in (0, 1, 8):
        monkeypatch.setattr(rounding, "SWEEPS", sweeps)
        found.append(loss(weight, round_to_grid(weight, h, GRID)[0], h).sum())
    assert found[0] > found[1] > found[2]


def test_near_the_best_of_all_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four inputs of four levels: every one of the 256 choices under the scale found."""
    monkeypatch.setattr(rounding, "DAMPING", 1e-6)
    grid = Grid(-2, 1, 4)
    weight, h = weight_of(6, 60, 4), moments(7, 4)
    rounded, scales = round_to_grid(weight, h, grid)
    choices = np.array(list(itertools.product(range(-2, 2), repeat=4)), np.float64)
    best = [
        min(loss(np.repeat(w[None], len(choices), 0), choices * s, h))
        for w, s in zip(weight, scales, strict=True)
    ]
    got = loss(weight, rounded, h)
    assert (got >= np.array(best) * (1 - 1e-6)).all()
    assert np.median(got / best) < 1.05


def test_inputs_never_seen_and_zero_weights() -> None:
    weight, h = weight_of(8, 6, 64), moments(9, 64)
    h[10], h[:, 10], weight[3] = 0, 0, 0
    rounded, _ = round_to_grid(weight, h, GRID)
    assert np.isfinite(rounded).all()
    assert not rounded[3].any()
