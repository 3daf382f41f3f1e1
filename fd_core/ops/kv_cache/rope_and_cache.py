"""rope_and_cache: head norms, rotation and the cache write of one packed projection, in one call."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.dtype import FLOATS, float32
from fd_core.ops.checks import DataError, check, check_range
from fd_core.ops.norm.qk_rmsnorm_fused import norm_heads
from fd_core.ops.rotary.fused_rotary_position_encoding import rotary_rows, rotate
from fd_core.ops.schema import Array, Case, In, InOut, OptIn, Tolerance, op

NAME = "rope_and_cache"
TOLERANCE = Tolerance(
    "the norm's sum of squares in any order moves a normed value, below 8, by 4e-6 of itself or, where it "
    "is rounded, to its neighbour; the rotation mixes two of them and may cancel: absolute terms of "
    "8 * 4e-6 and of an ulp of 8, beside one rounding of the result",
    {"float32": (4e-6, 3.2e-5), "bfloat16": (2**-7, 2**-5), "float16": (2**-10, 2**-8)},
)


def _case(
    shape: tuple[int, int, int, int, int],
    neox: bool,
    norm: bool,
    block_size: int = 16,
    cache: str = "",
    bench: bool = False,
) -> Case:
    tokens, q_heads, kv_heads, dim, rotary_dim = shape

    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        blocks = tokens // block_size + 2
        target = _named(cache) if cache else dtype
        slots = rng.permutation(blocks * block_size)[:tokens].astype(np.int64)
        slots[1::5] = -1
        weights = rng.uniform(0.5, 1.5, (2, dim)).astype(dtype)
        pools = rng.integers(0, 9, (2, blocks, block_size, kv_heads, dim)).astype(target)
        return {
            "qkv": rng.standard_normal((tokens, (q_heads + 2 * kv_heads) * dim)).astype(dtype),
            "position_ids": rng.integers(0, 64, tokens).astype(np.int32),
            "cos_sin_cache": rotary_rows(64, rotary_dim).astype(np.float32),
            "q_norm_weight": weights[0] if norm else None,
            "k_norm_weight": weights[1] if norm else None,
            "eps": 1e-6,
            **{"key_cache": pools[0], "value_cache": pools[1], "slot_mapping": slots},
            "is_neox": neox,
        }

    name = "x".join(map(str, shape)) + ("-neox" if neox else "-interleaved") + ("-norm" if norm else "")
    touched = tokens * (2 * q_heads + 5 * kv_heads) * dim
    kinds = (float32,) if cache else FLOATS
    return Case(
        name + (f"-{cache}" if cache else ""), args, kinds, bench, bytes=lambda size: size * touched
    )


def _named(name: str) -> np.dtype[Any]:
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else np.float16)


CASES = [
    _case((0, 2, 1, 8, 8), True, False),
    _case((7, 4, 2, 128, 128), True, True),
    _case((7, 4, 2, 128, 128), True, False, 64),
    _case((6, 3, 3, 64, 64), False, True),
    _case((5, 2, 1, 128, 64), False, False),
    _case((5, 2, 1, 128, 64), True, True),
    _case((3, 3, 1, 24, 18), True, True, 4),
    _case((3, 3, 1, 40, 12), False, True, 1),
    _case((9, 2, 1, 64, 64), True, True, cache="bfloat16"),
    _case((9, 2, 1, 64, 64), True, False, cache="float16"),
    _case((1, 32, 8, 128, 128), True, False, 64, bench=True),
    _case((1, 32, 8, 128, 128), True, True, 64, bench=True),
    _case((2048, 32, 8, 128, 128), True, False, 64, bench=True),
]


def _write(source: Array, cache: Array, slots: Array) -> None:
    seen = slots >= 0
    block, offset = np.divmod(slots[seen], cache.shape[1])
    cache[block, offset] = source[seen].astype(cache.dtype)


@op(family="kv_cache", cases=CASES, tolerance=TOLERANCE)
def rope_and_cache(
    qkv: InOut,
    position_ids: In,
    cos_sin_cache: In,
    q_norm_weight: OptIn,
    k_norm_weight: OptIn,
    eps: float,
    key_cache: InOut,
    value_cache: InOut,
    slot_mapping: In,
    is_neox: bool,
) -> None:
    """`qk_rmsnorm_fused` (if there are weights), `fused_rotary_position_encoding`, then
    `reshape_and_cache_flash` in its mode "auto", with the roundings of the three in turn.

    qkv [T, (Hq + 2 Hkv) D] float32 | bfloat16 | float16, columns q | k | v, rows may be strided: q and k
    are normed and rotated in place, v stays. key_cache, value_cache: logical [blocks, block_size, Hkv, D]
    as in `reshape_and_cache_flash`, of qkv's type, or bfloat16 | float16 for float32; D a multiple of 8.
    position_ids [T] int32 | int64, each in [0, P); cos_sin_cache [P, R] float32, R even and <= D;
    q_norm_weight and k_norm_weight [D] of qkv's type, both or neither; slot_mapping [T] int64, a
    negative slot is not written; `eps` >= 0.

    What attention needs between the projection and the scores, as one launch: a decode step of a small
    batch is bound by the number of launches. Source: specification ops-attention-kv §2 and §6.
    """
    heads, dim = key_cache.shape[2:]
    both = (q_norm_weight is None) == (k_norm_weight is None)
    check(both, NAME, "k_norm_weight", "both weights or neither", "one")
    q_size, kv_size = qkv.shape[1] - 2 * heads * dim, heads * dim
    check(q_size >= 0 and q_size % dim == 0, NAME, "qkv", f"heads of {dim}", qkv.shape)
    rotary_dim = cos_sin_cache.shape[1]
    fits = rotary_dim % 2 == 0 and rotary_dim <= dim
    check(fits, NAME, "cos_sin_cache", f"an even rotary dimension <= {dim}", rotary_dim)
    check_range(NAME, "position_ids", position_ids, 0, cos_sin_cache.shape[0])
    slots = key_cache.shape[0] * key_cache.shape[1]
    if slot_mapping.size and slot_mapping.max() >= slots:
        raise DataError(f"{NAME}.slot_mapping: want slots below {slots}, have {slot_mapping.max()}")
    if q_norm_weight is not None and k_norm_weight is not None:
        norm_heads(qkv[:, :q_size], q_norm_weight, eps, dim)
        norm_heads(qkv[:, q_size : q_size + kv_size], k_norm_weight, eps, dim)
    rows = cos_sin_cache[position_ids][:, None, :]
    parts = qkv.reshape(len(qkv), -1, dim) if len(qkv) else np.empty((0, q_size // dim + 2 * heads, dim))
    turned = q_size // dim + heads
    rotated = parts[:, :turned].copy()
    rotate(rotated, rows[..., : rotary_dim // 2], rows[..., rotary_dim // 2 :], is_neox)
    qkv[:, : turned * dim] = rotated.reshape(len(qkv), turned * dim)
    _write(rotated[:, -heads:], key_cache, slot_mapping)
    _write(parts[:, turned:], value_cache, slot_mapping)
