"""One decoder block out of ops, with a paged cache and a residual that are changed in place."""

from __future__ import annotations

from typing import Any

import numpy as np

TOKENS, HIDDEN, HEADS, DIM, INNER, BLOCK = 4, 16, 2, 8, 24, 4
EPS = 1e-6
NAMES = ("x", "residual", "keys", "values", "decoder", "this", "sums", "table", "rotary",
         "norm", "qkv", "out", "post_norm", "up", "down")  # fmt: skip


def arrays(seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Two sequences: three new tokens, and one behind two cached ones."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    angle = np.arange(8)[:, None] * 10.0 ** -np.arange(DIM // 2)
    return {
        "x": normal(TOKENS, HIDDEN),
        "residual": normal(TOKENS, HIDDEN),
        "keys": normal(6, 1, BLOCK, DIM),
        "values": normal(6, 1, BLOCK, DIM),
        "decoder": np.array([0, 2], np.int32),
        "this": np.array([3, 1], np.int32),
        "sums": np.array([0, 3, 4], np.int32),
        "table": np.array([[5, -1], [2, -1]], np.int32),
        "rotary": np.stack([np.cos(angle), np.sin(angle)]).astype(np.float32)[:, None, :, None],
        "norm": normal(HIDDEN),
        "qkv": normal((HEADS + 2) * DIM, HIDDEN) / 4,
        "out": normal(HIDDEN, HEADS * DIM) / 4,
        "post_norm": normal(HIDDEN),
        "up": normal(2 * INNER, HIDDEN) / 4,
        "down": normal(HIDDEN, INNER) / 5,
    }


def block(
    ops: Any, x: Any, residual: Any, keys: Any, values: Any, decoder: Any, this: Any, sums: Any, table: Any,
    rotary: Any, norm: Any, qkv: Any, out: Any, post_norm: Any, up: Any, down: Any,
) -> tuple[Any, Any]:  # fmt: skip
    """(hidden, residual)"""
    h = ops.linear(ops.rms_norm(x, norm, EPS), qkv, None)
    lists = (decoder, this, sums, table)
    h = ops.append_attention(h, keys, values, *lists, rotary, None, None, None, None, EPS, True, 0)
    h = ops.linear(h, out, None)
    h, residual = ops.fused_add_rmsnorm(h, residual, post_norm, EPS)
    return ops.linear(ops.swiglu(ops.linear(h, up, None), None), down, None), residual
