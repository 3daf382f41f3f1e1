"""top_logprobs: log-probability and rank of a chosen token, and the best alternatives."""

from __future__ import annotations

from fd_xpu.call import PaddleKernel
from fd_xpu.compute import LOWEST, Value, check, check_range, wide
from fd_xpu.framework import paddle


@PaddleKernel
def top_logprobs(logits: Value, token_ids: Value, k: int) -> tuple[Value, Value, Value, Value]:
    """Composed: one stable sort gives the order, lower ids first among equals."""
    rows, vocab = logits.shape
    check(0 <= k <= vocab, "top_logprobs.k", f"0 .. {vocab}", k)
    token_ids = check_range("top_logprobs.token_ids", token_ids, 0, vocab)
    if not rows:
        return tuple(
            paddle.zeros([0, *tail], kind) for tail, kind in zip(((), (), (k,), (k,)), KINDS, strict=True)
        )
    x = wide(logits)
    x = paddle.where(paddle.isnan(x), paddle.full_like(x, float("-inf")), x)
    top, token = x.max(-1, keepdim=True), token_ids.unsqueeze(1)
    shifted = paddle.where(x == top, paddle.zeros_like(x), x - top)
    logp = (shifted - paddle.log(paddle.exp(shifted).sum(-1, keepdim=True))).clip(min=LOWEST)
    rank = (x >= paddle.take_along_axis(x, token, 1)).astype("int64").sum(-1)
    ids = paddle.argsort(x, axis=-1, descending=True, stable=True)[:, :k]
    own = paddle.take_along_axis(logp, token, 1).squeeze(1)
    return own, rank, ids, paddle.take_along_axis(logp, ids, 1) if k else logp[:, :0]


KINDS = ("float32", "int64", "int64", "float32")
