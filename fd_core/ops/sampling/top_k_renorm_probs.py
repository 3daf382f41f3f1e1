"""top_k_renorm_probs: keep the k most probable entries and renormalise."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.dtype import float32
from fd_core.ops.sampling._truncate import top_k_cut
from fd_core.ops.sampling.sample_top_k_top_p import softmax_rows
from fd_core.ops.schema import Case, In, Out, Tolerance, op

TOLERANCE = Tolerance(
    "the kept sum in double precision and one division: the sum's rounding may differ by one ulp",
    {"float32": (2.5e-7, 0.0)},
)


def _case(rows: int, vocab: int, ties: bool = False, bench: bool = False) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        probs = softmax_rows(rng, rows, vocab, 2)
        if ties:
            probs = (rng.integers(0, 4, (rows, vocab)) / 1000).astype(np.float32)
        top_k = rng.choice(np.array([0, 1, 2, 20, 700, vocab, vocab + 1], np.int64), (rows, 1))
        return {"probs": probs, "top_k": top_k}

    return Case(f"{rows}x{vocab}-ties{ties:d}", args, (float32,), bench, bytes=8 * rows * vocab)


CASES = [_case(0, 3), _case(2, 1), _case(20, 5), _case(20, 1500), _case(20, 1500, True)]
CASES += [_case(8, 103424, bench=True)]


@op(
    family="sampling",
    infer=lambda probs, top_k: [probs],
    cases=CASES,
    tolerance=TOLERANCE,
    rows=("probs", "top_k", "renorm_probs"),
)
def top_k_renorm_probs(probs: In, top_k: In, renorm_probs: Out) -> None:
    """Keep entries >= the k-th largest (ties included) and > 0, divided by their sum; others 0.

    probs [n, V] float32; top_k [n] or [n, 1] int64, <= 0 or >= V: the row is copied bit for bit;
    renorm_probs like probs. A row with fewer than k positive entries keeps them as they are. The
    divisor is at least 1e-8.
    """
    for r, row in enumerate(probs):
        k = int(top_k.reshape(-1)[r])
        if k <= 0 or k >= row.size:
            renorm_probs[r] = row
            continue
        cut = top_k_cut(row, k)
        keep = row > 0 if cut is None else (row >= cut) & (row > 0)
        total = np.float32(1 if cut is None else max(row[keep].sum(dtype=np.float64), 1e-8))
        renorm_probs[r] = np.where(keep, row / total, np.float32(0))
