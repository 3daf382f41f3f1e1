"""apply_bad_words: mask the token that would complete a banned word, in place."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.dtype import FLOATS
from fd_core.ops.schema import EXACT, Array, Case, In, InOut, op

MASKED = np.float32(-1e10)


def _case(rows: int, vocab: int, history: int, num: int, length: int, narrow: bool = False) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        past = rng.integers(0, vocab, (rows, history))
        for row in past:
            row[rng.integers(0, history + 1) :] = -1
        logits = rng.standard_normal((rows, vocab)).astype(dtype)
        if narrow:  # all but one token are excluded already
            logits[:, 1:] = -np.inf
        return {
            "logits": logits,
            "history": past,
            "bad_words": rng.integers(-1, vocab + 1, (rows, num, length)),
            "bad_words_len": rng.integers(-1, length + 2, (rows, num)).astype(np.int32),
            "eos_token_id": np.array([[0], [vocab + 4]]),
        }

    return Case(f"{rows}x{vocab}-h{history}-{num}x{length}-narrow{narrow:d}", args, FLOATS)


CASES = [_case(0, 3, 2, 1, 1), _case(30, 3, 4, 6, 2), _case(30, 4, 0, 3, 3), _case(30, 2, 6, 5, 4)]
CASES += [_case(30, 3, 2, 4, 2, narrow=True), _case(3, 900, 9, 5, 8)]


def _banned(history: Array, words: Array, lengths: Array, vocab: int) -> list[int]:
    """Last tokens of the armed words of one row."""
    past = history[: np.argmax(history < 0)] if np.any(history < 0) else history
    found = []
    for word, length in zip(words, lengths, strict=True):
        if not 0 < length <= word.size or past.size < length - 1:
            continue
        armed = np.array_equal(past[past.size - (length - 1) :], word[: length - 1])
        if armed and 0 <= word[length - 1] < vocab:
            found.append(int(word[length - 1]))
    return found


@op(family="sampling", cases=CASES, tolerance=EXACT, rows=("logits", "history", "bad_words"))
def apply_bad_words(logits: InOut, history: In, bad_words: In, bad_words_len: In, eos_token_id: In) -> None:
    """logits[r, w[L-1]] = -1e10 (-inf in float16) for every word w whose first L-1 tokens end history[r].

    logits [n, V] float32 | bfloat16 | float16; history [n, P] int64, padded with -1 at the end (the
    last LEN - 1 tokens are enough); bad_words [n, NUM, LEN] int64; bad_words_len [n, NUM] int32, a
    length <= 0 or > LEN is ignored, as is a last token outside [0, V); eos_token_id int64 of any
    shape. Where masking leaves no finite logit above -5e9, the eos logits keep their values.
    Source: our extension, specification ops-sampling-speculative §2.3.
    """
    vocab = logits.shape[1]
    eos = eos_token_id.reshape(-1)
    eos = eos[(eos >= 0) & (eos < vocab)]
    for r, x in enumerate(logits):
        banned = _banned(history[r], bad_words[r], bad_words_len[r], vocab)
        if not banned:
            continue
        before = x[eos].copy()
        with np.errstate(over="ignore"):
            x[banned] = MASKED.astype(x.dtype)
        wide = x.astype(np.float32)
        if not np.any(np.isfinite(wide) & (wide > MASKED / 2)):
            x[eos] = before
