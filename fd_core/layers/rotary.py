"""Rotary tables: cosines and sines of every position, computed once on the host in float64.

`settings` is a Hugging Face `rope_scaling` / `rope_parameters` dictionary:

    rope_type              default | linear | dynamic | yarn | deepseek_yarn | llama3 (also as `type`)
    rope_theta             base of the frequencies, 10000 when absent
    partial_rotary_factor  share of the head that is rotated, 1 when absent
    max_position_embeddings, factor, ... as the type wants them

Frequencies: `theta^(-2j / R)` for j < R/2, where R is the rotated size, changed by the type.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Settings = Mapping[str, Any]

_THETA = 10000.0
_ROWS_AT_ONCE = 8192  # bounds the float64 temporaries of long tables


class RotaryError(ValueError):
    """Rotary settings that no table can be made from."""


def rotary_dim(settings: Settings, head_dim: int) -> int:
    """R: how many dimensions of a head are rotated."""
    share = settings.get("partial_rotary_factor")
    size = int(head_dim * (1.0 if share is None else share))
    if size % 2 or not 0 < size <= head_dim:
        raise RotaryError(
            f"partial_rotary_factor: want an even rotary size in (0, {head_dim}], have {size} from {share}"
        )
    return size


def rotary_table(settings: Settings, head_dim: int, positions: int) -> Array:
    """[positions, R] float32: R/2 columns of cos, then R/2 of sin, times the attention factor."""
    frequency, factor = frequencies(settings, rotary_dim(settings, head_dim), positions)
    half = len(frequency)
    table = np.empty((positions, 2 * half), np.float32)
    for start in range(0, positions, _ROWS_AT_ONCE):
        rows = table[start : start + _ROWS_AT_ONCE]
        angle = np.arange(start, start + len(rows), dtype=np.float64)[:, None] * frequency
        rows[:, :half] = np.cos(angle) * factor
        rows[:, half:] = np.sin(angle) * factor
    return table


def frequencies(settings: Settings, size: int, positions: int) -> tuple[Array, float]:
    """(inverse frequencies [size / 2] float64, attention factor) for a table of `positions` rows."""
    kind = settings.get("rope_type") or settings.get("type") or "default"
    if kind not in _TYPES:
        raise RotaryError(f"rope_type: want one of {', '.join(_TYPES)}, have {kind!r}")
    return _TYPES[kind](settings, size, positions)


def softmax_factor(settings: Settings) -> float:
    """What multiplies the softmax scale head_dim^-0.5 in latent attention: yarn's mscale squared.

    1 without yarn or without `mscale_all_dim`.
    """
    all_dim = settings.get("mscale_all_dim") or 0.0
    return _mscale(_yarn_factor(settings), all_dim) ** 2 if all_dim else 1.0


def _number(settings: Settings, key: str, default: float | None = None) -> float:
    """A finite number > 0, the default where the key is absent or null."""
    value = settings.get(key)
    if value is None:
        value = default
    if not isinstance(value, int | float) or not 0.0 < value < math.inf:
        raise RotaryError(f"rope settings: want a number > 0 for {key!r}, have {settings.get(key)!r}")
    return float(value)


def _plain(settings: Settings, size: int, base: float | None = None) -> Array:
    theta = _number(settings, "rope_theta", _THETA) if base is None else base
    return np.asarray(theta ** (-np.arange(0, size, 2, dtype=np.float64) / size))


def _default(settings: Settings, size: int, positions: int) -> tuple[Array, float]:
    return _plain(settings, size), 1.0


def _linear(settings: Settings, size: int, positions: int) -> tuple[Array, float]:
    return _plain(settings, size) / _number(settings, "factor"), 1.0


def _dynamic(settings: Settings, size: int, positions: int) -> tuple[Array, float]:
    """NTK: the base grows with the length. A cached key cannot be rotated again when its sequence
    grows, so the base is that of the table's whole length, and the plain one up to the trained length.
    """
    trained = _number(settings, "max_position_embeddings")
    factor = _number(settings, "factor")
    stretch = factor * max(positions, trained) / trained - (factor - 1.0)
    base = _number(settings, "rope_theta", _THETA) * stretch ** (size / max(size - 2, 1))
    return _plain(settings, size, base), 1.0


def _llama3(settings: Settings, size: int, positions: int) -> tuple[Array, float]:
    """Long wavelengths are stretched by `factor`, short ones kept, with a linear passage between."""
    plain, factor = _plain(settings, size), _number(settings, "factor")
    low, high = _number(settings, "low_freq_factor"), _number(settings, "high_freq_factor")
    if high <= low:
        raise RotaryError(f"rope settings: want high_freq_factor > low_freq_factor, have {high} <= {low}")
    turns = _original(settings) * plain / (2.0 * math.pi)  # within the trained length
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return plain * (kept + (1.0 - kept) / factor), 1.0


def _yarn(settings: Settings, size: int, positions: int) -> tuple[Array, float]:
    plain, factor = _plain(settings, size), _yarn_factor(settings)
    low, high = _yarn_range(settings, size)
    ramp = np.clip((np.arange(size // 2) - low) / (high - low), 0.0, 1.0)
    kept = (1.0 - ramp) * _number(settings, "extrapolation_factor", 1.0)
    return plain * ((1.0 - kept) / factor + kept), _yarn_attention(settings, factor)


def _original(settings: Settings) -> float:
    trained = settings.get("max_position_embeddings")
    return _number(settings, "original_max_position_embeddings", trained)


def _yarn_factor(settings: Settings) -> float:
    if settings.get("factor") is not None:
        return _number(settings, "factor")
    return _number(settings, "max_position_embeddings") / _original(settings)


def _yarn_range(settings: Settings, size: int) -> tuple[float, float]:
    """Dimensions between which the frequencies go from kept to stretched."""
    theta, original = _number(settings, "rope_theta", _THETA), _original(settings)

    def dimension(turns: float) -> float:
        return size * math.log(original / (turns * 2.0 * math.pi)) / (2.0 * math.log(theta))

    low = dimension(_number(settings, "beta_fast", 32.0))
    high = dimension(_number(settings, "beta_slow", 1.0))
    if settings.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    return low, high + (0.001 if low == high else 0.0)


def _mscale(scale: float, weight: float = 1.0) -> float:
    return 1.0 if scale <= 1.0 else 0.1 * weight * math.log(scale) + 1.0


def _yarn_attention(settings: Settings, factor: float) -> float:
    """The two forms differ in what a single one of the mscale keys means: DeepSeek's fills in 1 and 0,
    Hugging Face's ignores it."""
    if settings.get("attention_factor") is not None:
        return _number(settings, "attention_factor")
    share = _number(settings, "attn_factor", 1.0)
    one, all_dim = settings.get("mscale"), settings.get("mscale_all_dim")
    if settings.get("rope_type", settings.get("type")) == "deepseek_yarn":
        one, all_dim = 1.0 if one is None else one, all_dim or 0.0
    elif not (one and all_dim):
        one, all_dim = 1.0, 0.0
    return share * _mscale(factor, float(one)) / _mscale(factor, float(all_dim))


_TYPES: Mapping[str, Callable[[Settings, int, int], tuple[Array, float]]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "deepseek_yarn": _yarn,
    "llama3": _llama3,
}
