"""reshape_and_cache_flash: write the keys and values of new tokens into the paged cache."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.dtype import FLOATS, float32
from fd_core.ops.checks import DataError
from fd_core.ops.schema import Array, Case, In, InOut, OptInOut, Tolerance, op

TOLERANCE = Tolerance(
    "copies are bit for bit; the quantiser's maximum, division and roundings are each one IEEE op"
)
_MODES = ("auto", "", "fp8_e4m3", "int8", "float8_e4m3fn")
#: The largest codes of types whose rows are followed by their scale.
LARGEST_CODE = {"int8": 127, "float8_e4m3fn": 448}
#: The scale's, float32.
SCALE_BYTES = 4
#: Below it everything counts as zero: 127 / absmax would overflow.
_TINY = np.float32(1e-30)


def _kind(name: str) -> np.dtype[Any]:
    """The NumPy type of codes."""
    import ml_dtypes

    return np.dtype(np.int8 if name == "int8" else ml_dtypes.float8_e4m3fn)


def _case(tokens: int, heads: int, dim: int, block_size: int, mode: str, bench: bool = False) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        blocks = tokens // block_size + 2
        key, value = (rng.standard_normal((tokens, heads, dim)).astype(dtype) for _ in range(2))
        cache_type = np.uint8 if mode == "fp8_e4m3" else _kind(mode) if mode in LARGEST_CODE else dtype
        pool = (blocks, block_size, heads, dim + SCALE_BYTES * (mode in LARGEST_CODE))
        key_cache, value_cache = (rng.integers(0, 9, pool).astype(cache_type) for _ in range(2))
        slots = rng.permutation(blocks * block_size)[:tokens].astype(np.int64)
        slots[1::5] = -1
        scales = [np.ones(pool[:3], np.float32) if mode == "fp8_e4m3" else None for _ in range(2)]
        return {
            "key": key, "value": value, "key_cache": key_cache, "value_cache": value_cache,
            "slot_mapping": slots, "k_scale": scales[0], "v_scale": scales[1], "kv_cache_dtype": mode,
        }  # fmt: skip

    name = f"{tokens}x{heads}x{dim}-bs{block_size}-{mode or 'empty'}"
    return Case(name, args, FLOATS, bench, bytes=lambda size: 4 * size * tokens * heads * dim)


def _rounding_case(cache: str) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        import ml_dtypes

        target = np.dtype(ml_dtypes.bfloat16 if cache == "bfloat16" else np.float16)
        base = _case(9, 2, 40, 16, "auto").args(rng, dtype)
        return base | {name: base[name].astype(target) for name in ("key_cache", "value_cache")}

    return Case(f"round-to-{cache}", args, (float32,))


CASES = [_case(0, 2, 64, 16, "auto"), _case(1, 1, 8, 1, ""), _case(7, 3, 24, 16, "auto")]
CASES += [_case(7, 2, 64, 16, "fp8_e4m3"), _case(5, 3, 24, 4, "fp8_e4m3"), _case(40, 8, 128, 64, "auto")]
CASES += [_case(7, 2, 64, 16, mode) for mode in LARGEST_CODE]
CASES += [_case(5, 3, 24, 4, mode) for mode in LARGEST_CODE]
CASES += [_rounding_case("bfloat16"), _rounding_case("float16")]
CASES += [_case(1, 8, 128, 64, "auto", bench=True), _case(512, 8, 128, 64, "auto", bench=True)]


def _codes(rows: Array, scale: Array) -> Array:
    import ml_dtypes

    scaled = np.clip(rows / scale[..., None], np.float32(-448), np.float32(448))
    codes = scaled.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    return np.where(np.isnan(scaled), np.uint8(0x7F), codes)


def code_rows(rows: Array, kind: str) -> Array:
    """Rows [..., dim] as codes of type `kind` and, behind them, their scale's bytes: [..., dim + 4]."""
    largest = np.float32(LARGEST_CODE[kind])
    most = np.abs(rows).max(axis=-1, keepdims=True, initial=0).astype(np.float32)
    finite = np.isfinite(most)
    usable = finite & (most > _TINY)
    inverse = np.divide(largest, most, where=usable, out=np.zeros_like(most))
    with np.errstate(invalid="ignore"):
        scaled = np.where(usable, rows * inverse, np.float32(0))
    scale = np.where(usable, most / largest, np.where(finite, np.float32(0), np.float32(np.nan)))
    if kind == "int8":
        scaled = np.rint(scaled)
    codes = np.clip(scaled, -largest, largest).astype(_kind(kind)).view(np.int8)
    together = np.concatenate([codes, np.ascontiguousarray(scale).view(np.int8)], axis=-1)
    return together.view(_kind(kind))


def code_floats(rows: Array) -> Array:
    """The inverse: [..., dim + 4] codes to [..., dim] float32."""
    scale = np.ascontiguousarray(rows[..., -SCALE_BYTES:]).view(np.float32)
    return np.asarray(rows[..., :-SCALE_BYTES].astype(np.float32) * scale)


def _write(source: Array, cache: Array, slots: Array, scales: Array | None, mode: str) -> None:
    seen = slots >= 0
    block, offset = np.divmod(slots[seen], cache.shape[1])
    if mode in LARGEST_CODE:
        cache[block, offset] = code_rows(source[seen].astype(np.float32), mode)
        return
    if mode != "fp8_e4m3":
        cache[block, offset] = source[seen].astype(cache.dtype)
        return
    assert scales is not None
    rows = source[seen].astype(np.float32)
    scale = np.maximum(np.abs(rows).max(axis=-1) / np.float32(448), np.float32(1e-12))
    scales[block, offset] = scale
    cache[block, offset] = _codes(rows, scale)


@op(family="kv_cache", cases=CASES, tolerance=TOLERANCE)
def reshape_and_cache_flash(
    key: In,
    value: In,
    key_cache: InOut,
    value_cache: InOut,
    slot_mapping: In,
    k_scale: OptInOut,
    v_scale: OptInOut,
    kv_cache_dtype: str,
) -> None:
    """key_cache[slot // block_size, slot % block_size] = key, and the same for values, per token.

    key, value [tokens, heads, dim] float32 | bfloat16 | float16, dim a multiple of 8; strides free but
    for the last, which is 1. key_cache, value_cache: logical [blocks, block_size, heads, dim] whatever
    the memory order (token-major is contiguous, head-major a transposed view); last stride 1, others
    free and each pool's own. slot_mapping [tokens] int64: block * block_size + offset; a negative slot
    is skipped. Of several tokens with one slot it is not defined which stays.

    kv_cache_dtype "auto" or "": the caches have key's dtype and get its bits; beyond the
    specification, float32 keys may go into bfloat16 or float16 caches with one rounding. k_scale and
    v_scale are not used. "fp8_e4m3": uint8 caches; k_scale, v_scale float32 [blocks, block_size, heads]
    are written with scale = max(absmax / 448, 1e-12) over dim, the caches with the e4m3fn codes of
    x / scale (nearest even, saturating, NaN = 0x7f): x ~ code * scale.

    "int8" and "float8_e4m3fn", beyond the specification too: caches of that type whose last dimension is
    dim + 4: the codes of a head's row, nearest even of x * (largest / absmax) with the type's largest code
    of 127 or 448, then its scale absmax / largest as the four bytes of a float32: x ~ code * scale. A row
    with a NaN or an infinity has codes 0 and scale NaN.

    Raises ValueError for a slot >= blocks * block_size, a mismatch of shapes, missing scales or an
    unknown kv_cache_dtype, TypeError for dtypes; nothing is written then. Source: ops-attention-kv §6.
    """
    if kv_cache_dtype not in _MODES:
        raise ValueError(f"reshape_and_cache_flash.kv_cache_dtype: want {_MODES}, have {kv_cache_dtype!r}")
    slots = key_cache.shape[0] * key_cache.shape[1]
    if slot_mapping.size and slot_mapping.max() >= slots:
        have = slot_mapping.max()
        raise DataError(f"reshape_and_cache_flash.slot_mapping: want slots below {slots}, have {have}")
    _write(key, key_cache, slot_mapping, k_scale, kv_cache_dtype)
    _write(value, value_cache, slot_mapping, v_scale, kv_cache_dtype)
