"""apply_bad_words: mask the token that would complete a banned word, in place."""

from __future__ import annotations

import numpy as np

from fd_xpu.call import PaddleKernel
from fd_xpu.compute import Array, Value, f32, host, like
from fd_xpu.framework import paddle
from fd_xpu.masking import MASKED, as_stored


@PaddleKernel
def apply_bad_words(
    logits: Value, history: Value, bad_words: Value, bad_words_len: Value, eos_token_id: Value
) -> Value | None:
    """Words are matched on the host, where the histories come from."""
    rows, vocab = logits.shape
    past, words, lengths = host(history), host(bad_words), host(bad_words_len)
    banned = np.zeros((rows, vocab), bool)
    for row in range(rows):
        banned[row, armed(past[row], words[row], lengths[row], vocab)] = True
    if not banned.any():
        return None
    eos = np.zeros((1, vocab), bool)
    ids = host(eos_token_id).reshape(-1)
    eos[0, ids[(ids >= 0) & (ids < vocab)]] = True
    x = f32(logits)
    masked = paddle.where(like(banned, x), paddle.full_like(x, as_stored(MASKED, logits)), x)
    alive = (paddle.isfinite(masked) & (masked > MASKED / 2)).any(-1, keepdim=True)
    spared = like(eos & banned.any(-1, keepdims=True), x) & ~alive
    return paddle.where(spared, x, masked)


def armed(history: Array, words: Array, lengths: Array, vocab: int) -> list[int]:
    """Last tokens of the words whose other tokens end the history."""
    ends = np.flatnonzero(history < 0)
    past = history[: ends[0]] if ends.size else history
    found = []
    for word, length in zip(words, lengths.tolist(), strict=True):
        if not 0 < length <= word.size or past.size < length - 1 or not 0 <= word[length - 1] < vocab:
            continue
        if np.array_equal(past[past.size - length + 1 :], word[: length - 1]):
            found.append(int(word[length - 1]))
    return found
