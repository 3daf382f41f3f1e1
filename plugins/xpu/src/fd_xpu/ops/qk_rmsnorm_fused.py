"""qk_rmsnorm_fused: RMS norm of every query and key head inside a packed qkv."""

from __future__ import annotations

from fd_xpu.call import PaddleKernel
from fd_xpu.compute import Value, check
from fd_xpu.framework import paddle
from fd_xpu.ops.rms_norm import normed


@PaddleKernel
def qk_rmsnorm_fused(
    qkv: Value,
    q_norm_weight: Value,
    k_norm_weight: Value,
    eps: float,
    q_size: int,
    kv_size: int,
    head_dim: int,
) -> Value:
    """The norm of rms_norm over heads; v passes through."""
    for size, argument in ((q_size, "q_size"), (kv_size, "kv_size")):
        check(size % head_dim == 0, f"qk_rmsnorm_fused.{argument}", f"a multiple of {head_dim}", size)
    q, k, v = paddle.split(qkv, [q_size, kv_size, kv_size], axis=-1)
    heads = (part.reshape([qkv.shape[0], -1, head_dim]) for part in (q, k))
    pairs = zip(heads, (q_norm_weight, k_norm_weight), strict=True)
    parts = [normed(part, weight, eps).astype(qkv.dtype) for part, weight in pairs]
    return paddle.concat([*(part.reshape([qkv.shape[0], -1]) for part in parts), v], axis=-1)
