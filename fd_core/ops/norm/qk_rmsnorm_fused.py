"""qk_rmsnorm_fused: RMS norm of every query and key head inside a packed qkv."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.dtype import FLOATS
from fd_core.ops.checks import check
from fd_core.ops.norm.rms_norm import TOLERANCE
from fd_core.ops.schema import Array, Case, In, InOut, op


def _case(tokens: int, q_heads: int, kv_heads: int, head_dim: int, bench: bool = False) -> Case:
    q_size, kv_size = q_heads * head_dim, kv_heads * head_dim

    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        return {
            "qkv": rng.standard_normal((tokens, q_size + 2 * kv_size)).astype(dtype),
            "q_norm_weight": rng.uniform(0.5, 1.5, head_dim).astype(dtype),
            "k_norm_weight": rng.uniform(0.5, 1.5, head_dim).astype(dtype),
            **{"eps": 1e-6, "q_size": q_size, "kv_size": kv_size, "head_dim": head_dim},
        }

    touched = 2 * tokens * (q_size + kv_size)
    return Case(
        f"{tokens}-q{q_heads}-kv{kv_heads}-d{head_dim}",
        args,
        FLOATS,
        bench,
        bytes=lambda size: size * touched,
    )


CASES = [_case(0, 2, 1, 8), _case(1, 1, 1, 1), _case(3, 4, 2, 24), _case(5, 3, 3, 80)]
CASES += [_case(128, 32, 4, 128, bench=True), _case(1, 16, 8, 128, bench=True)]


def norm_heads(part: Array, weight: Array, eps: float, head_dim: int) -> None:
    heads = part.reshape(part.shape[0], part.shape[1] // head_dim, head_dim).astype(np.float32)
    scale = 1.0 / np.sqrt(np.mean(heads * heads, axis=-1, keepdims=True) + np.float32(eps))
    part[...] = (heads * scale * weight.astype(np.float32)).astype(part.dtype).reshape(part.shape)


@op(family="norm", cases=CASES, tolerance=TOLERANCE, rows=("qkv",))
def qk_rmsnorm_fused(
    qkv: InOut,
    q_norm_weight: In,
    k_norm_weight: In,
    eps: float,
    q_size: int,
    kv_size: int,
    head_dim: int,
) -> None:
    """Each head h of the q and k columns: h <- h / sqrt(mean(h^2) + eps) * weight; v is untouched.

    qkv [tokens, q_size + 2 kv_size] float32 | bfloat16 | float16, columns q | k | v, rows may be
    strided; both weights [head_dim], of qkv's type or float32, alike. q_size and kv_size are multiples
    of head_dim (any head_dim). float32 throughout, one rounding. To be called before rotary, once: a
    second call normalises again. Specification ops-attention-kv §2.
    """
    name = "qk_rmsnorm_fused"
    for size, argument in ((q_size, "q_size"), (kv_size, "kv_size")):
        check(size % head_dim == 0, name, argument, f"a multiple of head_dim {head_dim}", size)
    check(qkv.shape[1] == q_size + 2 * kv_size, name, "qkv", q_size + 2 * kv_size, qkv.shape)
    norm_heads(qkv[:, :q_size], q_norm_weight, eps, head_dim)
    norm_heads(qkv[:, q_size : q_size + kv_size], k_norm_weight, eps, head_dim)
