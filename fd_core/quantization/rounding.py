"""Rounding weights by what it does to a layer's outputs.

With H the second moments of a layer's inputs, the error of a rounded weight is compensated by those that
are not rounded yet, input by input, so that x W^T changes least over the inputs seen (GPTQ, Frantar et al.
2022). Then codes and scales are improved in turn, each the best given all others (coordinate descent).

The layers before were rounded too, so that inputs x are no longer those y of the model as it was. What is
rounded is therefore the weight whose outputs on x are nearest to the old ones on y: W + W D H^-1, with D
the sum of (y - x) x^T (as GPTAQ, Li et al. 2025).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fd_core.api.quant import Grid

Array = np.ndarray[Any, Any]

#: Share of the mean second moment added to each of them: inputs not seen are not trusted blindly.
DAMPING = 0.01
#: Scales tried for a group: so many steps of this size above and below what its outermost asks for.
LARGER, SMALLER, SHRINK = 4, 11, np.float32(0.025)
#: Passes over the rounded weights, each code and each scale set to what is best given all others.
SWEEPS = 8


@dataclass(frozen=True, slots=True)
class Steps:
    """How the columns of one group are rounded: scale and zero point [out], float32."""

    scale: Array
    zero: Array
    grid: Grid

    def levels(self, values: Array) -> Array:
        """The nearest codes less their zero points."""
        near = np.rint(np.divide(values, self.scale, where=self.scale != 0, out=np.zeros_like(values)))
        return np.asarray(np.clip(near, self.grid.low - self.zero, self.grid.high - self.zero))

    def nearest(self, values: Array) -> Array:
        return np.asarray(self.levels(values) * self.scale)


@dataclass(frozen=True, slots=True)
class Rounded:
    """weight [out, in] on the grid; scale and, where the grid has some, zero [out, groups]. float32."""

    weight: Array
    scale: Array
    zero: Array | None


@dataclass(slots=True)
class Moments:
    """Of a layer's inputs: `second` [in, in], the sum of x x^T, and `drift` [in, in], that of (y - x) x^T
    with y the inputs of the model as it was. float32."""

    second: Array
    drift: Array

    @classmethod
    def zeros(cls, features: int) -> Moments:
        return cls(*(np.zeros((features, features), np.float32) for _ in range(2)))

    def add(self, x: Array, y: Array) -> None:
        """Inputs x [tokens, in], and y of the same tokens."""
        self.second += x.T @ x
        self.drift += (y - x).T @ x


def round_to_grid(weight: Array, moments: Moments, grid: Grid) -> Rounded:
    """What is left of a weight [out, in]. Inside, matrices are [in, out]: what belongs to one input is
    adjacent."""
    damped = _damped(moments.second)
    inverse = np.linalg.inv(damped)
    wanted = _wanted(weight.astype(np.float32), moments.drift, inverse)
    factor = np.linalg.cholesky(inverse).T.astype(np.float32)
    rounded, steps = _compensated(wanted, factor, grid)
    _refine(wanted, rounded, steps, damped.astype(np.float32))
    scale, zero = (np.stack([getattr(s, n) for s in steps], 1) for n in ("scale", "zero"))
    return Rounded(np.ascontiguousarray(rounded.T), scale, zero if grid.zeros else None)


def _wanted(weight: Array, drift: Array, inverse: Array) -> Array:
    """The weight that makes up for the drift, turned."""
    correction: Array = (inverse @ drift.T).astype(np.float32)
    return np.asarray(np.ascontiguousarray(weight.T) + correction @ weight.T)


def _damped(moments: Array) -> Array:
    """Invertible: inputs never seen stand alone. float64."""
    h = moments.astype(np.float64)
    diagonal = np.diagonal(h).copy()
    mean = max(float(diagonal.mean()), 1e-30) if len(h) else 1.0
    unseen = np.flatnonzero(diagonal == 0)
    h[unseen, unseen] = mean
    h[np.diag_indices_from(h)] += DAMPING * mean
    return h


def _groups(depth: int, grid: Grid) -> list[slice]:
    step = grid.group or max(depth, 1)
    return [slice(k, min(k + step, depth)) for k in range(0, depth, step)]


def _compensated(wanted: Array, factor: Array, grid: Grid) -> tuple[Array, list[Steps]]:
    """One pass from the first input to the last, errors passed on to those still to come."""
    rest, out, steps = wanted.copy(), np.zeros_like(wanted), []
    for part in _groups(len(wanted), grid):
        spread = np.float32(1) / np.square(np.diagonal(factor)[part])
        steps.append(best_steps(rest[part], spread, grid))
        out[part], errors = _round_group(rest[part], factor[part, part], steps[-1])
        rest[part.stop :] -= factor[part, part.stop :].T @ errors
    return out, steps


def _round_group(part: Array, factor: Array, steps: Steps) -> tuple[Array, Array]:
    """Weights of one group on the grid, and each error over its input's own factor."""
    part = part.copy()
    out, errors = np.empty_like(part), np.empty_like(part)
    for k in range(len(part)):
        out[k] = steps.nearest(part[k])
        errors[k] = (part[k] - out[k]) / factor[k, k]
        part[k + 1 :] -= factor[k, k + 1 :, None] * errors[k]
    return out, errors


def _refine(wanted: Array, rounded: Array, steps: list[Steps], moments: Array) -> None:
    """Coordinate descent from there, in place: the loss (r - w)^T H (r - w) of no output rises."""
    slope = moments @ (rounded - wanted)
    for _ in range(SWEEPS):
        for one, part in zip(steps, _groups(len(wanted), steps[0].grid), strict=True):
            inner, before = moments[part, part], rounded[part].copy()
            group, local = rounded[part], slope[part].copy()
            _rescale(group, local, one, inner)
            for k in range(len(group)):
                best = one.nearest(group[k] - local[k] / inner[k, k])
                local += inner[k][:, None] * (best - group[k])
                group[k] = best
            slope += moments[:, part] @ (group - before)


def _rescale(group: Array, slope: Array, steps: Steps, inner: Array) -> None:
    """The best scales for the codes as they are, where they lower the loss; all in place."""
    scale = steps.scale
    levels = np.rint(np.divide(group, scale, where=scale != 0, out=np.zeros_like(group)))
    curve = np.einsum("kn,kn->n", inner @ levels, levels)
    steep = np.einsum("kn,kn->n", slope, levels)
    best = np.divide(steep, curve, where=curve > 0, out=np.zeros_like(curve))
    change = _as_stored(scale - best) - scale
    change[change * (2 * steep + change * curve) >= 0] = 0
    group += levels * change
    slope += (inner @ levels) * change
    scale += change


def _as_stored(scale: Array) -> Array:
    import ml_dtypes

    return scale.astype(ml_dtypes.bfloat16).astype(np.float32)


def best_steps(part: Array, importance: Array, grid: Grid) -> Steps:
    """Per column of part [n, out] the bfloat16 scale and the zero point of the least squares, weighted by
    `importance` [n] or [n, out].

    Tried are absmax / high, the outermost / low (of either sign), somewhat larger and smaller ones, for
    clipping the outermost often serves the many better; with zero points also the range over all codes.
    """
    columns = part.shape[1]
    best = Steps(np.zeros(columns, np.float32), np.zeros(columns, np.float32), grid)
    least = np.full(columns, np.inf, np.float32)
    for scale, zero in _candidates(part, grid):
        one = Steps(scale, zero, grid)
        errors = np.square(part - one.nearest(part))
        loss = importance @ errors if importance.ndim == 1 else (importance * errors).sum(0)
        better = loss < least
        best.scale[better], best.zero[better], least[better] = scale[better], zero[better], loss[better]
    return best


def _candidates(part: Array, grid: Grid) -> Iterator[tuple[Array, Array]]:
    """(scale, zero point) of every column, one after the other."""
    outermost = np.take_along_axis(part, np.abs(part).argmax(0)[None], 0)[0]
    shrunk = [1 - SHRINK * np.float32(i) for i in range(-LARGER, SMALLER + 1)]
    for start in (np.abs(outermost) / grid.high, outermost / grid.low):
        for factor in shrunk:
            yield _as_stored(start * factor), np.zeros_like(start)
    if grid.zeros is not None:
        for factor in shrunk:
            yield from _about_the_middle(part, factor, grid, grid.zeros)


def _about_the_middle(
    part: Array, factor: np.float32, grid: Grid, zeros: tuple[int, int]
) -> Iterator[tuple[Array, Array]]:
    """A scale that spreads the range over the codes, with zero points that put its middle amid them."""
    low, high = part.min(0), part.max(0)
    scale = _as_stored((high - low) / (grid.high - grid.low) * factor)
    middle = np.divide((low + high) / 2, scale, where=scale != 0, out=np.zeros_like(scale))
    zero = np.rint((grid.low + grid.high) / 2 - middle)
    for away in (0, -1, 1):
        yield scale, np.clip(zero + away, *zeros)
