"""rejection_top_p_sampling: one draw per row from the top-p (and top-k) truncated distribution."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.dtype import float32, int64
from fd_core.api.tensor import TensorSpec
from fd_core.ops.sampling._philox import philox_bits
from fd_core.ops.sampling._truncate import sample
from fd_core.ops.sampling.sample_top_k_top_p import softmax_rows
from fd_core.ops.schema import EXACT, Case, In, OptIn, Out, op


def _case(rows: int, vocab: int, top_k: bool, keyed: bool = False) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        k = rng.choice(np.array([0, 1, 3, 20], np.int64), (rows, 1))
        seeds = rng.integers(0, 2**63 - 1, rows)
        return {
            "probs": softmax_rows(rng, rows, vocab, 2),
            "top_p": rng.uniform(-0.1, 1.2, (rows, 1)).astype(np.float32),
            "top_k": k if top_k else None,
            "seed": 2033,
            "row_seeds": seeds if keyed else None,
            "positions": np.arange(rows, dtype=np.int64) if keyed else None,
        }

    coupled = "" if keyed else "row r draws from stream r of one seed"
    return Case(f"{rows}x{vocab}-k{top_k:d}-keyed{keyed:d}", args, (float32,), coupled=coupled)


CASES = [_case(0, 3, False), _case(3, 1, True), _case(30, 40, False), _case(30, 1000, True)]
CASES += [_case(30, 500, True, True), _case(10, 103424, False)]


@op(
    family="sampling",
    infer=lambda probs, top_p, top_k, seed, row_seeds, positions: [TensorSpec((probs.shape[0], 1), int64)],
    cases=CASES,
    tolerance=EXACT,
    rows=("probs", "top_p", "top_k", "row_seeds", "positions", "samples"),
)
def rejection_top_p_sampling(
    probs: In, top_p: In, top_k: OptIn, seed: int, row_seeds: OptIn, positions: OptIn, samples: Out
) -> None:
    """Draw from K = { i : sum of p_j > p_i < top_p and fewer than top_k values exceed p_i }.

    probs [n, V] float32, not necessarily summing to 1, entries above 1 count as 1; top_p [n] or
    [n, 1] float32 (>= 1: everything, <= 0: the argmax); top_k [n] or [n, 1] int64 or None, off at
    <= 0; samples [n, 1] or [n] int64. Both filters look at the original values (joint); ties stay
    together.

    Random numbers: Philox4x32-10 with key = seed >= 0 and one stream per row, so a seed gives the
    same draws at every call. With row_seeds and positions [n] or [n, 1] int64 (ours, both or
    neither) row r is keyed by (row_seeds[r], positions[r]) and its draw does not depend on the batch.
    The -1 that means "take the device's generator" is resolved by the caller, who owns the generator.
    """
    drawn = samples.reshape(-1)
    for r, row in enumerate(probs):
        key = (
            (seed, 0, r)
            if row_seeds is None or positions is None
            else (int(row_seeds.reshape(-1)[r]), int(positions.reshape(-1)[r]), 0)
        )
        k = 0 if top_k is None else int(top_k.reshape(-1)[r])
        off = np.float32(0)
        drawn[r] = sample(row, k, top_p.reshape(-1)[r], off, False, philox_bits(*key))
