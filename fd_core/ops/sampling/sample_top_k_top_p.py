"""sample_top_k_top_p: one reproducible draw per row from the truncated distribution."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.dtype import float32, int64
from fd_core.api.tensor import TensorSpec
from fd_core.ops.sampling._philox import philox_bits
from fd_core.ops.sampling._truncate import sample
from fd_core.ops.schema import EXACT, Case, In, Out, op


def softmax_rows(rng: np.random.Generator, rows: int, vocab: int, scale: float) -> Any:
    x = scale * rng.standard_normal((rows, vocab))
    e = np.exp(x - x.max(axis=-1, keepdims=True, initial=-1e9))
    return (e / e.sum(axis=-1, keepdims=True)).astype(np.float32)


def _case(rows: int, vocab: int, kind: str = "mixed", bench: bool = False) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        probs = softmax_rows(rng, rows, vocab, 3)
        top_k = rng.choice(np.array([0, 1, 2, 5, 50, vocab], np.int64), rows)
        top_p = rng.choice(np.array([0, 0.1, 0.5, 0.9, 1], np.float32), rows)
        min_p = rng.choice(np.array([0, 0.01, 0.5, 1], np.float32), rows)
        if kind == "ties":
            probs = np.round(rng.random((rows, vocab)), 1).astype(np.float32) / np.float32(vocab)
        elif kind == "bad":
            probs[rng.random((rows, vocab)) < 0.5] = np.nan
            probs[rng.random((rows, vocab)) < 0.2] = -1
            probs[:1] = np.nan
            probs[1:2] = 0
        elif kind == "usual":
            top_k[:], top_p[:], min_p[:] = 50, 0.9, 0
        seed = rng.integers(0, 2**63 - 1, rows)
        position = rng.integers(0, 2**40, rows)
        return {"probs": probs, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed,
                "position": position}  # fmt: skip

    return Case(f"{rows}x{vocab}-{kind}", args, (float32,), bench, bytes=4 * rows * vocab)


CASES = [_case(0, 4), _case(2, 1), _case(40, 23), _case(40, 300), _case(20, 5000), _case(20, 999, "ties")]
CASES += [_case(12, 70, "bad"), _case(1, 151936, "usual", bench=True)]
CASES += [_case(16, 151936, "usual", bench=True)]


@op(
    family="sampling",
    infer=lambda probs, top_k, top_p, min_p, seed, position: [TensorSpec(probs.shape[:1], int64)],
    cases=CASES,
    tolerance=EXACT,
    rows=("probs", "top_k", "top_p", "min_p", "seed", "position", "out"),
)
def sample_top_k_top_p(
    probs: In, top_k: In, top_p: In, min_p: In, seed: In, position: In, out: Out
) -> None:
    """Draw out[r] from row r after min-p, top-k and top-p, keyed by (seed[r], position[r]) alone.

    probs [n, V] float32 in [0, 1] (NaN and negative entries count as 0), rows may be strided; top_k
    [n] int64, off at <= 0 and >= V; top_p [n] float32, off at >= 1, the argmax at <= 0; min_p [n]
    float32, off at <= 0; seed, position [n] int64; out [n] int64.

    The kept set is that of min_p_sampling, top_k_renorm_probs and rejection_top_p_sampling in turn:
    p_i >= max * min_p; p_i >= the k-th largest; weight above p_i < top_p (of what top-k left where
    it took effect). Ties are kept together. The draw is the first id, in id order, whose running
    weight passes floor(u * total), u = 64 bits of Philox4x32-10 / 2^64, key = seed, counter =
    (position, 0). Weights are round(p * 2^50) and all sums integers, so equal probabilities give
    equal tokens on every device. A row without a positive entry gives its argmax.
    """
    for r, row in enumerate(probs):
        bits = philox_bits(int(seed[r]), int(position[r]))
        out[r] = sample(row, int(top_k[r]), top_p[r], min_p[r], True, bits)
