"""Which experts a token goes to: what the ops of mixtures share."""

from __future__ import annotations

from fd_xpu.compute import Value, check, wide
from fd_xpu.framework import paddle

MAX_TOPK = 256


def check_topk(op: str, k: int, experts: int, bias: Value | None) -> None:
    most = min(experts, MAX_TOPK)
    check(1 <= k <= most, f"{op}.moe_topk", f"1 .. {most}", k)
    if bias is not None:
        check(bias.size == experts, f"{op}.bias", f"{experts} numbers", list(bias.shape))


def softmax(logits: Value) -> Value:
    """Over the last dimension, in the arithmetic of `wide`."""
    x = wide(logits)
    grown = paddle.exp(x - x.max(-1, keepdim=True))
    return grown / grown.sum(-1, keepdim=True)


def best(keys: Value, k: int) -> Value:
    """[T, k] int64: the largest keys first, ties to the lower index, NaN last."""
    number = ~paddle.isnan(keys)
    clean = paddle.where(number, keys, paddle.full_like(keys, float("-inf")))
    order = paddle.argsort(clean, axis=-1, descending=True, stable=True)
    # -inf and NaN are equal now: a second stable sort puts the numbers first
    numbers = paddle.take_along_axis(number.astype("int32"), order, -1)
    again = paddle.argsort(numbers, axis=-1, descending=True, stable=True)
    return paddle.take_along_axis(order, again, -1)[:, :k]


def route(logits: Value, bias: Value | None, k: int, groups: int, raw: bool) -> tuple[Value, Value]:
    """(experts int64, weights float32), each [T, k]. `groups` > 1: slot j takes the best of run j. `raw`:
    the logits are the scores."""
    tokens, experts = logits.shape
    runs = logits.reshape([tokens * groups, experts // groups])
    scores = wide(runs) if raw else softmax(runs)
    scores = scores.astype("float32")
    keys = runs if bias is None else scores + bias.reshape([1, -1]).tile([tokens, 1]).reshape(runs.shape)
    ids = best(keys, k if groups == 1 else 1)
    weights = paddle.take_along_axis(scores, ids, -1).reshape([tokens, k])
    first = paddle.arange(k, dtype="int64") * (experts // groups) if groups > 1 else 0
    return ids.reshape([tokens, k]) + first, weights
