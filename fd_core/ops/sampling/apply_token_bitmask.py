"""apply_token_bitmask: a grammar's bit per token, applied to logits in place."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.dtype import FLOATS
from fd_core.ops.schema import EXACT, Case, In, InOut, OptIn, op


def _case(rows: int, vocab: int, size: int, indices: list[int] | None = None) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        mask = rng.integers(-(2**31), 2**31, (rows, -(-vocab // 32))).astype(np.int32)
        mask[rng.random(mask.shape) < 0.5] = rng.choice(np.array([0, -1], np.int32))
        mask[:1] = 0
        return {
            "logits": rng.standard_normal((rows, vocab)).astype(dtype),
            "bitmask": mask,
            "vocab_size": size,
            "indices": None if indices is None else np.array(indices, np.int32),
        }

    coupled = "" if indices is None else "indices name rows of the whole batch"
    return Case(f"{rows}x{vocab}-{size}-{indices}", args, FLOATS, coupled=coupled)


CASES = [
    _case(0, 3, 3),
    _case(2, 1, 1),
    _case(5, 100, 100),
    _case(5, 100, 70, [4, 1]),
    _case(3, 64, 64, []),
]
CASES += [_case(3, 2000, 1985), _case(2, 40, 0)]


@op(family="sampling", cases=CASES, tolerance=EXACT, rows=("logits", "bitmask"))
def apply_token_bitmask(logits: InOut, bitmask: In, vocab_size: int, indices: OptIn) -> None:
    """logits[r, i] = -inf where bit i & 31 of bitmask[r, i >> 5] is 0, for i < vocab_size.

    logits [n, V] float32 | bfloat16 | float16; bitmask [m, W] int32, its row r belongs to row r of
    the logits; indices [k] int32 | int64: the rows to mask, None for all (then m >= n); tokens >=
    vocab_size are left as they are. A row whose bits are all 0 is left unmasked: it would have no
    probabilities, and a device cannot raise; who fills the mask must notice a dead grammar.
    Bad input: vocab_size outside [0, min(V, 32 W)], an index outside the rows.
    """
    for r in range(len(logits)) if indices is None else indices:
        bits = np.unpackbits(bitmask[r].view(np.uint8), bitorder="little")[:vocab_size].astype(bool)
        if bits.any():
            logits[r, :vocab_size][~bits] = -np.inf
