"""min_p_sampling: zero all probabilities below a fraction of the row's maximum."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.dtype import float32
from fd_core.ops.sampling.sample_top_k_top_p import softmax_rows
from fd_core.ops.schema import EXACT, Case, In, Out, op


def _case(rows: int, vocab: int) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        min_p = rng.choice(np.array([0, 0.01, 0.3, 1], np.float32), (rows, 1))
        return {"probs": softmax_rows(rng, rows, vocab, 2), "min_p": min_p}

    return Case(f"{rows}x{vocab}", args, (float32,))


CASES = [_case(0, 3), _case(2, 1), _case(20, 77), _case(6, 20000)]


@op(
    family="sampling",
    infer=lambda probs, min_p: [probs],
    cases=CASES,
    tolerance=EXACT,
    rows=("probs", "min_p", "renorm_probs"),
)
def min_p_sampling(probs: In, min_p: In, renorm_probs: Out) -> None:
    """renorm_probs = p where p >= max(row) * min_p, else 0. Nothing is renormalised.

    probs [n, V] float32 without NaN; min_p [n] or [n, 1] float32 in [0, 1]; the product is rounded to
    float32. renorm_probs like probs. Bad input: min_p outside [0, 1].
    """
    if probs.size:
        pivot = probs.max(axis=-1, keepdims=True) * min_p.reshape(-1, 1)
        renorm_probs[...] = np.where(probs >= pivot, probs, np.float32(0))
