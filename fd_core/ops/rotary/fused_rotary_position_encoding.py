"""fused_rotary_position_encoding: rotate query and key heads in place."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.dtype import FLOATS
from fd_core.ops.checks import check, check_range
from fd_core.ops.schema import Array, Case, In, InOut, Tolerance, op

TOLERANCE = Tolerance(
    "two products and a sum in float32, fused or not: half an ulp of the larger product, which the "
    "absolute term covers where the sum cancels; one rounding to the output type",
    {"float32": (1e-6, 1e-6), "bfloat16": (2**-7, 1e-6), "float16": (2**-10, 1e-6)},
)


def rotary_rows(positions: int, rotary_dim: int) -> Array:
    frequency = 10000.0 ** (-np.arange(0, rotary_dim, 2) / max(rotary_dim, 1))
    angle = np.outer(np.arange(positions), frequency)
    return np.concatenate([np.cos(angle), np.sin(angle)], axis=1)


def _case(
    shape: tuple[int, int, int, int, int],
    neox: bool,
    ids: str = "int32",
    narrow_table: bool = False,
    bench: bool = False,
) -> Case:
    tokens, q_heads, k_heads, head_size, rotary_dim = shape

    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        return {
            "query": rng.standard_normal((tokens, q_heads * head_size)).astype(dtype),
            "key": rng.standard_normal((tokens, k_heads, head_size)).astype(dtype),
            "position_ids": rng.integers(0, 64, tokens).astype(ids),
            "cos_sin_cache": rotary_rows(64, rotary_dim).astype(dtype if narrow_table else np.float32),
            "head_size": head_size,
            "is_neox": neox,
        }

    style = "neox" if neox else "interleaved"
    name = "x".join(map(str, shape)) + f"-{style}-{ids}" + ("-narrow" if narrow_table else "")
    touched = 2 * tokens * (q_heads + k_heads) * rotary_dim
    return Case(name, args, FLOATS, bench, bytes=lambda size: size * touched)


CASES = [
    _case((0, 2, 1, 8, 8), True),
    _case((4, 2, 2, 6, 4), False),
    _case((3, 2, 2, 8, 8), True, "int64"),
    _case((10, 2, 2, 4, 4), False, "int64"),
    _case((5, 4, 2, 128, 64), True, narrow_table=True),
    _case((5, 3, 1, 100, 72), True),
    _case((5, 3, 1, 100, 72), False),
    _case((7, 8, 1, 64, 64), False, narrow_table=True),
    _case((2, 2, 1, 16, 0), True),
    _case((1, 16, 8, 128, 128), True, bench=True),
    _case((512, 16, 8, 128, 128), True, bench=True),
    _case((512, 16, 1, 64, 64), False, bench=True),
]


def rotate(x: Array, cos: Array, sin: Array, neox: bool) -> None:
    half = cos.shape[-1]
    first, second = (
        (slice(0, half), slice(half, 2 * half)) if neox else (slice(0, 2 * half, 2), slice(1, 2 * half, 2))
    )
    a, b = x[..., first].astype(np.float32), x[..., second].astype(np.float32)
    x[..., first] = (a * cos - b * sin).astype(x.dtype)
    x[..., second] = (b * cos + a * sin).astype(x.dtype)


@op(family="rotary", cases=CASES, tolerance=TOLERANCE, rows=("query", "key", "position_ids"))
def fused_rotary_position_encoding(
    query: InOut, key: InOut, position_ids: In, cos_sin_cache: In, head_size: int, is_neox: bool
) -> None:
    """Rotate the first R dimensions of every query and key head by its token's position.

    query, key [T, H * head_size] or [T, H, head_size], float32 | bfloat16 | float16, alike; both may
    be column slices of one qkv buffer (strided rows and heads). position_ids [T] int32 | int64, each
    in [0, P). cos_sin_cache [P, R] float32 or query's type: R/2 columns of cos, then R/2 of sin;
    R even, <= head_size. Pairs are (j, j + R/2) with `is_neox`, else (2j, 2j + 1):
    x' = x cos - y sin, y' = y cos + x sin, in float32 with one rounding. Dimensions >= R stay.

    Any T: the limit of 65535 tokens of the call-compatible entry belongs to that entry, not here.
    Specification ops-attention-kv §2.
    """
    name = "fused_rotary_position_encoding"
    positions, rotary_dim = cos_sin_cache.shape
    fits = rotary_dim % 2 == 0 and rotary_dim <= head_size
    check(fits, name, "cos_sin_cache", f"an even rotary dimension <= {head_size}", rotary_dim)
    check_range(name, "position_ids", position_ids, 0, positions)
    rows = cos_sin_cache[position_ids].astype(np.float32)[:, None, :]
    cos, sin = rows[..., : rotary_dim // 2], rows[..., rotary_dim // 2 :]
    for x in (query, key):
        heads = x.reshape(x.shape[0], -1, head_size) if x.size else np.empty((0, 1, head_size), x.dtype)
        rotate(heads, cos[: len(heads)], sin[: len(heads)], is_neox)
        x[...] = heads.reshape(x.shape)
