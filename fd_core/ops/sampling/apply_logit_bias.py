"""apply_logit_bias: add a value to chosen logits of each row, in place."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.dtype import FLOATS
from fd_core.ops.schema import EXACT, Case, In, InOut, op


def ragged(rng: np.random.Generator, rows: int, vocab: int, most: int) -> dict[str, Any]:
    """Random lists of ids, some empty, some ids outside the vocabulary."""
    lengths = rng.integers(0, most + 1, rows) * rng.integers(0, 2, rows)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return {"offsets": offsets, "ids": rng.integers(-1, vocab + 1, int(offsets[-1]))}


def _case(rows: int, vocab: int, most: int) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        lists = ragged(rng, rows, vocab, most)
        values = rng.choice(np.array([-np.inf, -100, 0.3, 7], np.float32), lists["ids"].size)
        logits = rng.standard_normal((rows, vocab)).astype(dtype)
        return {"logits": logits, **lists, "values": values}

    return Case(f"{rows}x{vocab}-{most}", args, FLOATS)


CASES = [_case(0, 3, 0), _case(2, 1, 3), _case(20, 10, 8), _case(5, 3000, 300)]


@op(family="sampling", cases=CASES, tolerance=EXACT, rows=("logits",))
def apply_logit_bias(logits: InOut, offsets: In, ids: In, values: In) -> None:
    """logits[r, ids[i]] += values[i] for i in [offsets[r], offsets[r + 1]), in order.

    logits [n, V] float32 | bfloat16 | float16 (each sum in float32, rounded back); offsets [n + 1]
    int32 ascending; ids [m] int64, those outside [0, V) are skipped; values [m] float32, -inf allowed.
    """
    for r, x in enumerate(logits):
        for i in range(offsets[r], offsets[r + 1]):
            if 0 <= ids[i] < x.size:
                x[ids[i]] = (np.float32(x[ids[i]]) + values[i]).astype(x.dtype)
