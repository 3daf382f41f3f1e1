"""top_logprobs: log-probability and rank of a chosen token, and the best alternatives."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.dtype import float32, int64
from fd_core.api.tensor import TensorSpec
from fd_core.ops.schema import Case, In, Out, Tolerance, op

LOWEST = np.finfo(np.float32).min

TOLERANCE = Tolerance(
    "log of a float32 sum (relative error a few 2^-24, so 5e-7 absolute) and one float32 difference "
    "whose terms are below 2^7 in the cases: half an ulp each, 2^-17",
    {"float32": (1e-6, 1.6e-5)},
)


def _case(rows: int, vocab: int, k: int, kind: str = "normal", bench: bool = False) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        logits = (5 * rng.standard_normal((rows, vocab))).astype(dtype)
        if kind == "ties":
            logits = np.round(logits / 4).astype(dtype)
        elif kind == "masked":
            logits[rng.random((rows, vocab)) < 0.8] = -np.inf
            logits[rng.random((rows, vocab)) < 0.1] = np.nan
            logits[:1] = -np.inf
            logits[1:2, 1:3] = np.inf
        tokens = rng.integers(0, max(1, vocab - 1), rows)  # valid in a row without its last column too
        return {"logits": logits, "token_ids": tokens, "k": k}

    return Case(f"{rows}x{vocab}-k{k}-{kind}", args, (float32,), bench, bytes=4 * rows * vocab)


CASES = [_case(0, 3, 2), _case(2, 1, 1), _case(5, 30, 0), _case(5, 30, 30, "ties"), _case(3, 9001, 5)]
CASES += [_case(6, 600, 20, "ties"), _case(6, 40, 12, "masked"), _case(1, 151936, 20, bench=True)]


def _infer(logits: Any, token_ids: Any, k: int) -> list[TensorSpec]:
    rows = logits.shape[0]
    own = [TensorSpec((rows,), float32), TensorSpec((rows,), int64)]
    return [*own, TensorSpec((rows, k), int64), TensorSpec((rows, k), float32)]


@op(
    family="sampling",
    infer=_infer,
    cases=CASES,
    tolerance=TOLERANCE,
    rows=("logits", "token_ids", "token_logprob", "rank", "ids", "logprobs"),
)
def top_logprobs(
    logits: In, token_ids: In, k: int, token_logprob: Out, rank: Out, ids: Out, logprobs: Out
) -> None:
    """Log-softmax of each row at token_ids[r] and at its k best entries.

    logits [n, V] float32, NaN counts as -inf; token_ids [n] int64 in [0, V); 0 <= k <= V.
    token_logprob [n], logprobs [n, k] float32, -inf becomes the lowest float32; rank [n] int64 = the
    number of entries >= the token's (the best has 1); ids [n, k] int64, best first, lower id first
    among equals. Entries equal to an infinite maximum share the row's probability.
    """
    for r, row in enumerate(logits):
        x = np.where(np.isnan(row), -np.inf, row).astype(np.float64)
        shifted = np.full_like(x, 0.0)
        np.subtract(x, x.max(), out=shifted, where=x != x.max())
        logp = np.maximum(shifted - np.log(np.exp(shifted).sum()), float(LOWEST)).astype(np.float32)
        order = np.argsort(-x, kind="stable")[:k]
        token = int(token_ids[r])
        token_logprob[r], rank[r] = logp[token], np.count_nonzero(x >= x[token])
        ids[r], logprobs[r] = order, logp[order]
