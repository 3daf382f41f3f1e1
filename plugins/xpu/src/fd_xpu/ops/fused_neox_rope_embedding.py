"""fused_neox_rope_embedding: split a packed qkv and rotate q and k by per-token tables."""

from __future__ import annotations

from fd_xpu.call import PaddleKernel
from fd_xpu.compute import Value, check, f32
from fd_xpu.framework import paddle


@PaddleKernel
def fused_neox_rope_embedding(
    qkv: Value, cos_emb: Value, sin_emb: Value, num_heads: int, head_dim: int
) -> tuple[Value, Value, Value]:
    """Composed."""
    check(head_dim % 2 == 0, "fused_neox_rope_embedding.head_dim", "an even number", head_dim)
    parts = qkv.reshape([qkv.shape[0], 3, num_heads, head_dim])
    q, k = (turned(f32(parts[:, i]), cos_emb, sin_emb) for i in (0, 1))
    return q, k, parts[:, 2]


def turned(x: Value, cos: Value, sin: Value) -> Value:
    """x [T, H, D] float32; every element has a cosine and a sine of its own."""
    first, second = paddle.split(x, 2, axis=-1)
    return x * cos + paddle.concat([-second, first], -1) * sin
