"""fused_neox_rope_embedding: split a packed qkv and rotate q and k by per-token tables."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.dtype import FLOATS
from fd_core.api.tensor import TensorSpec
from fd_core.ops.checks import check
from fd_core.ops.rotary.fused_rotary_position_encoding import TOLERANCE
from fd_core.ops.schema import Array, Case, In, Out, op


def _case(tokens: int, num_heads: int, head_dim: int, bench: bool = False) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        angle = rng.uniform(-3, 3, (2, tokens, 1, head_dim))
        return {
            "qkv": rng.standard_normal((tokens, 3 * num_heads * head_dim)).astype(dtype),
            "cos_emb": np.cos(angle[0]).astype(np.float32),
            "sin_emb": np.sin(angle[1]).astype(np.float32),
            "num_heads": num_heads,
            "head_dim": head_dim,
        }

    touched = 2 * tokens * 3 * num_heads * head_dim
    return Case(f"{tokens}x{num_heads}x{head_dim}", args, FLOATS, bench, bytes=lambda size: size * touched)


CASES = [_case(0, 2, 8), _case(1, 1, 2), _case(3, 2, 80), _case(5, 3, 36)]
CASES += [_case(256, 16, 128, bench=True)]


def _infer(
    qkv: TensorSpec, cos_emb: TensorSpec, sin_emb: TensorSpec, num_heads: int, head_dim: int
) -> list[TensorSpec]:
    return [TensorSpec((qkv.shape[0], num_heads, head_dim), qkv.dtype)] * 3


def _rotated(x: Array, cos: Array, sin: Array) -> Array:
    wide, half = x.astype(np.float32), x.shape[-1] // 2
    turned = np.concatenate([-wide[..., half:], wide[..., :half]], axis=-1)
    return np.asarray(wide * cos + turned * sin).astype(x.dtype)


@op(family="rotary", infer=_infer, cases=CASES, tolerance=TOLERANCE, rows=("qkv", "q", "k", "v"))
def fused_neox_rope_embedding(
    qkv: In, cos_emb: In, sin_emb: In, num_heads: int, head_dim: int, q: Out, k: Out, v: Out
) -> None:
    """q, k = x * cos + rotate_half(x) * sin of qkv's q and k columns; v is copied.

    qkv [T, 3 * num_heads * head_dim] float32 | bfloat16 | float16, columns q | k | v, rows may be
    strided; cos_emb, sin_emb [T, 1, head_dim] float32, one row per token, whose two halves may differ
    (each half of the head uses its own); q, k, v [T, num_heads, head_dim] contiguous.
    rotate_half(x) = concat(-x2, x1). Even head_dim. float32, one rounding. Vision towers;
    specification ops-attention-kv §2.
    """
    width = 3 * num_heads * head_dim
    check(qkv.shape[1] == width, "fused_neox_rope_embedding", "qkv", f"{width} columns", qkv.shape)
    parts = qkv.reshape(qkv.shape[0], 3, num_heads, head_dim)
    q[...] = _rotated(parts[:, 0], cos_emb, sin_emb)
    k[...] = _rotated(parts[:, 1], cos_emb, sin_emb)
    v[...] = parts[:, 2]
