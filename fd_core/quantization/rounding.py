"""Rounding weights by what it does to a layer's outputs (GPTQ, Frantar et al. 2022).

With H the second moments of a layer's inputs, the error of a rounded weight is compensated by those that
are not rounded yet, input by input, so that x W^T changes least over the inputs seen.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.quant import Grid

Array = np.ndarray[Any, Any]

#: Share of the mean second moment added to each of them: inputs not seen are not trusted blindly.
DAMPING = 0.01
#: Scales tried for a group: so many steps of this size below the largest.
CANDIDATES, SHRINK = 16, np.float32(0.025)


#: Passes over the rounded weights, each code and each scale set to what is best given all others.
SWEEPS = 8


def round_to_grid(weight: Array, moments: Array, grid: Grid) -> tuple[Array, Array]:
    """(weights on the grid [out, in], scales [out, groups]), float32, for a weight [out, in].

    moments [in, in]: the sum of x x^T over inputs x, or any positive multiple of it.
    Inside, matrices are [in, out]: what belongs to one input is adjacent.
    """
    damped = _damped(moments)
    wanted = np.ascontiguousarray(weight.astype(np.float32).T)
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32)
    rounded, scales = _compensated(wanted, factor, grid)
    _refine(wanted, rounded, scales, damped.astype(np.float32), grid)
    return np.ascontiguousarray(rounded.T), np.ascontiguousarray(scales.T)


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


def _compensated(wanted: Array, factor: Array, grid: Grid) -> tuple[Array, Array]:
    """One pass from the first input to the last, errors passed on to those still to come."""
    rest, out = wanted.copy(), np.zeros_like(wanted)
    groups = _groups(len(wanted), grid)
    scales = np.zeros((len(groups), wanted.shape[1]), np.float32)
    for g, part in enumerate(groups):
        spread = np.float32(1) / np.square(np.diagonal(factor)[part])
        scales[g] = best_scales(rest[part], spread, grid)
        out[part], errors = _round_group(rest[part], factor[part, part], scales[g], grid)
        rest[part.stop :] -= factor[part, part.stop :].T @ errors
    return out, scales


def _round_group(part: Array, factor: Array, scale: Array, grid: Grid) -> tuple[Array, Array]:
    """Weights of one group on the grid, and each error over its input's own factor."""
    part = part.copy()
    out, errors = np.empty_like(part), np.empty_like(part)
    for k in range(len(part)):
        out[k] = _nearest(part[k], scale, grid)
        errors[k] = (part[k] - out[k]) / factor[k, k]
        part[k + 1 :] -= factor[k, k + 1 :, None] * errors[k]
    return out, errors


def _refine(wanted: Array, rounded: Array, scales: Array, moments: Array, grid: Grid) -> None:
    """Coordinate descent from there, in place: the loss (r - w)^T H (r - w) of no output rises."""
    slope = moments @ (rounded - wanted)
    for _ in range(SWEEPS):
        for g, part in enumerate(_groups(len(wanted), grid)):
            inner, before = moments[part, part], rounded[part].copy()
            group, local = rounded[part], slope[part].copy()
            _rescale(group, local, scales[g], inner)
            for k in range(len(group)):
                best = _nearest(group[k] - local[k] / inner[k, k], scales[g], grid)
                local += inner[k][:, None] * (best - group[k])
                group[k] = best
            slope += moments[:, part] @ (group - before)


def _rescale(group: Array, slope: Array, scale: Array, inner: Array) -> None:
    """The best scales for the codes as they are, where they lower the loss; all in place."""
    codes = np.rint(np.divide(group, scale, where=scale != 0, out=np.zeros_like(group)))
    curve = np.einsum("kn,kn->n", inner @ codes, codes)
    steep = np.einsum("kn,kn->n", slope, codes)
    best = np.divide(steep, curve, where=curve > 0, out=np.zeros_like(curve))
    change = _as_stored(scale - best) - scale
    change[change * (2 * steep + change * curve) >= 0] = 0
    group += codes * change
    slope += (inner @ codes) * change
    scale += change


def _as_stored(scale: Array) -> Array:
    import ml_dtypes

    return scale.astype(ml_dtypes.bfloat16).astype(np.float32)


def _nearest(values: Array, scale: Array, grid: Grid) -> Array:
    codes = np.divide(values, scale, where=scale != 0, out=np.zeros_like(values))
    return np.asarray(np.clip(np.rint(codes), grid.low, grid.high) * scale)


def best_scales(part: Array, importance: Array, grid: Grid) -> Array:
    """Per column of part [n, out] the bfloat16 scale of the least weighted squared error.

    Tried are absmax / high, the outermost / low (of either sign), and somewhat smaller ones, for clipping
    the outermost often serves the many better.
    """
    outermost = np.take_along_axis(part, np.abs(part).argmax(0)[None], 0)[0]
    best = np.zeros(part.shape[1], np.float32)
    least = np.full(part.shape[1], np.inf, np.float32)
    for start in (np.abs(outermost) / grid.high, outermost / grid.low):
        for i in range(CANDIDATES):
            scale = _as_stored(start * (1 - SHRINK * i))
            loss = importance @ np.square(part - _nearest(part, scale, grid))
            better = loss < least
            best[better], least[better] = scale[better], loss[better]
    return best
