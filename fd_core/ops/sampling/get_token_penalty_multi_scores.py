"""get_token_penalty_multi_scores: minimum length, penalties, temperature and banned tokens, in place."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.dtype import FLOATS
from fd_core.ops.schema import Array, Case, In, InOut, Tolerance, op

MASKED = np.float32(-1e10)

TOLERANCE = Tolerance(
    "x*a - cnt*b - c, fused or not, is off by an ulp of its largest term (below 2^5 in the cases: "
    "2^-18), divided by T >= 0.3; then one rounding to the logits' type",
    {"float32": (1e-6, 1.5e-5), "bfloat16": (2**-7, 1.5e-5), "float16": (2**-10, 1.5e-5)},
)


def _case(rows: int, vocab: int, history: int, kind: str = "") -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        slots = rows + 1
        pre = rng.integers(-vocab, vocab + 3, (slots, history))
        scores = np.dtype(np.float32) if kind == "float32" else dtype

        def column(low: float, high: float, of: Any) -> Array:
            return rng.uniform(low, high, (slots, 1)).astype(of)

        temperature = column(0.3, 1.5, np.float32)
        temperature[::2] = 1
        return {
            "pre_ids": np.maximum(pre, -1),
            "prompt_ids": rng.integers(-1, vocab + 3, (slots, 9)),
            "prompt_len": rng.integers(0, 12, (slots, 1)),
            "logits": (3 * rng.standard_normal((rows, vocab))).astype(dtype),
            "penalty_scores": column(0.5, 2, scores),
            "frequency_scores": column(-1, 1, scores),
            "presence_scores": column(-1, 1, scores),
            "temperatures": temperature,
            "bad_tokens": rng.integers(-1, vocab + 2, (slots, 3)),
            "bad_tokens_len": rng.integers(0, 5, (slots, 1)),
            "cur_len": rng.integers(-1, 4, (slots, 1)),
            "min_len": rng.integers(0, 4, (slots, 1)),
            "eos_token_id": rng.integers(-1, vocab + 1, (3, 1)),
        }

    return Case(f"{rows}x{vocab}x{history}-{kind}", args, FLOATS)


CASES = [_case(0, 5, 3), _case(3, 1, 2), _case(9, 40, 8), _case(9, 700, 30, "float32"), _case(2, 5000, 0)]


def _mask_eos(x: Array, eos: Array, cur_len: int, min_len: int) -> None:
    if 0 <= cur_len < min_len:
        ids = eos[(eos >= 0) & (eos < x.size)]
        x[ids] = -1e4 if x.dtype == np.float16 else MASKED


def _counts(generated: Array, vocab: int) -> Array:
    inside = generated[(generated >= 0) & (generated < vocab)]
    return np.bincount(inside, minlength=vocab).astype(np.float32)


PER_ROW: tuple[str, ...] = ("pre_ids", "prompt_ids", "prompt_len", "logits", "penalty_scores")
PER_ROW += (
    "frequency_scores",
    "presence_scores",
    "temperatures",
    "bad_tokens",
    "bad_tokens_len",
    "cur_len",
    "min_len",
)


@op(family="sampling", cases=CASES, tolerance=TOLERANCE, rows=PER_ROW)
def get_token_penalty_multi_scores(
    pre_ids: In,
    prompt_ids: In,
    prompt_len: In,
    logits: InOut,
    penalty_scores: In,
    frequency_scores: In,
    presence_scores: In,
    temperatures: In,
    bad_tokens: In,
    bad_tokens_len: In,
    cur_len: In,
    min_len: In,
    eos_token_id: In,
) -> None:
    """Process logits of row = slot b in place, in this order:

    1. if 0 <= cur_len < min_len: logits[eos] = -1e10 (-1e4 in float16);
    2. cnt[v] = occurrences of v in pre_ids[b]; seen = cnt > 0 or v in prompt_ids[b, :prompt_len];
       neither counts where cur_len < 0;
    3. in float32: x = x*alpha if x < 0 else x/alpha where seen; x -= cnt*beta + gamma where cnt > 0;
       x /= temperature; one rounding back;
    4. logits[bad_tokens[b, :bad_tokens_len]] = -1e10 (-inf in float16).

    pre_ids [B, P], prompt_ids [B, S] int64; prompt_len, bad_tokens_len, cur_len, min_len [B, 1] or
    [B] int64; logits [n <= B, V] float32 | bfloat16 | float16; penalty (alpha > 0), frequency (beta),
    presence (gamma) [B, 1] of the logits' type or float32; temperatures [B, 1] float32 > 0;
    bad_tokens [B, M] int64; eos_token_id int64 of any shape. Ids outside [0, V) are ignored.
    """
    vocab = logits.shape[1]
    for b, x in enumerate(logits):
        current = int(cur_len.reshape(-1)[b])
        _mask_eos(x, eos_token_id.reshape(-1), current, int(min_len.reshape(-1)[b]))
        live = current >= 0
        count = _counts(pre_ids[b], vocab) if live else np.zeros(vocab, np.float32)
        prompt = prompt_ids[b, : max(0, int(prompt_len.reshape(-1)[b]))]
        seen = (count > 0) | (live & (_counts(prompt, vocab) > 0))
        alpha, beta, gamma = (
            np.float32(s.reshape(-1)[b]) for s in (penalty_scores, frequency_scores, presence_scores)
        )
        wide = x.astype(np.float32)
        wide = np.where(seen, np.where(wide < 0, wide * alpha, wide / alpha), wide)
        wide = np.where(count > 0, wide - count * beta - gamma, wide)
        bad = bad_tokens[b, : max(0, int(bad_tokens_len.reshape(-1)[b]))]
        with np.errstate(over="ignore"):
            x[...] = (wide / temperatures.reshape(-1)[b]).astype(x.dtype)
            x[bad[(bad >= 0) & (bad < vocab)]] = MASKED.astype(x.dtype)
