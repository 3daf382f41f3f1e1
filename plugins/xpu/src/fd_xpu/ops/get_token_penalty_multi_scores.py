"""get_token_penalty_multi_scores: minimum length, penalties, temperature and banned tokens, in place."""

from __future__ import annotations

import numpy as np

from fd_xpu.call import PaddleKernel, rounded
from fd_xpu.compute import Array, Value, check, f32, flat, host, like
from fd_xpu.framework import paddle
from fd_xpu.masking import MASKED, as_stored


@PaddleKernel
def get_token_penalty_multi_scores(
    pre_ids: Value,
    prompt_ids: Value,
    prompt_len: Value,
    logits: Value,
    penalty_scores: Value,
    frequency_scores: Value,
    presence_scores: Value,
    temperatures: Value,
    bad_tokens: Value,
    bad_tokens_len: Value,
    cur_len: Value,
    min_len: Value,
    eos_token_id: Value,
) -> Value:
    """Ids are sorted out on the host and counted on the device."""
    rows, vocab = logits.shape
    check(
        rows <= pre_ids.shape[0],
        "get_token_penalty_multi_scores.logits",
        f"at most {pre_ids.shape[0]} rows",
        rows,
    )
    if not rows or not vocab:
        return logits
    lengths = [host(x).reshape(-1)[:rows] for x in (prompt_len, bad_tokens_len, cur_len, min_len)]
    prompt, bad, current, least = lengths
    early = mask(np.broadcast_to(host(eos_token_id).reshape(-1), (rows, eos_token_id.size)), vocab)
    early &= ((current >= 0) & (current < least))[:, None]
    live = (current >= 0)[:, None]
    generated = np.where(live, host(pre_ids)[:rows], -1)
    given = np.where(live & first(prompt, prompt_ids.shape[1]), host(prompt_ids)[:rows], -1)
    x = f32(logits)
    low = as_stored(-1e4 if logits.dtype == paddle.float16 else MASKED, logits)
    x = paddle.where(like(early, x), paddle.full_like(x, low), x)
    columns = [
        f32(s[:rows].reshape([rows, 1])) for s in (penalty_scores, frequency_scores, presence_scores)
    ]
    x = penalised(x, counts(generated, vocab, x), counts(given, vocab, x), *columns)
    x = f32(rounded(x / temperatures[:rows].reshape([rows, 1]), logits.dtype))
    banned = np.where(first(bad, bad_tokens.shape[1]), host(bad_tokens)[:rows], -1)
    return paddle.where(like(mask(banned, vocab), x), paddle.full_like(x, as_stored(MASKED, logits)), x)


def penalised(x: Value, count: Value, prompt: Value, alpha: Value, beta: Value, gamma: Value) -> Value:
    seen = (count > 0) | (prompt > 0)
    x = paddle.where(seen, paddle.where(x < 0, x * alpha, x / alpha), x)
    return paddle.where(count > 0, x - count * beta - gamma, x)


def first(lengths: Array, width: int) -> Array:
    """[rows, width] bool: the first `lengths` of each row."""
    return np.asarray(np.arange(width)[None, :] < lengths[:, None])


def places(ids: Array, vocab: int) -> Array:
    """Flat places of the ids in [0, vocab), row by row."""
    row = np.broadcast_to(np.arange(ids.shape[0])[:, None], ids.shape)
    inside = (ids >= 0) & (ids < vocab)
    return np.asarray(row[inside] * vocab + ids[inside])


def mask(ids: Array, vocab: int) -> Array:
    found = np.zeros(ids.shape[0] * vocab, bool)
    found[places(ids, vocab)] = True
    return found.reshape(ids.shape[0], vocab)


def counts(ids: Array, vocab: int, at: Value) -> Value:
    """[rows, vocab] float32: how often each id appears in its row."""
    where = places(ids, vocab)
    zeros = flat(paddle.zeros([ids.shape[0], vocab], "float32"))
    if where.size:
        ones = paddle.ones([where.size], "float32")
        zeros = paddle.scatter_nd_add(zeros, like(where.reshape(-1, 1), at), ones)
    return zeros.reshape([ids.shape[0], vocab])
