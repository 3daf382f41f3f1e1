"""apply_allowed_tokens: exclude every token but the listed ones, in place."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.dtype import FLOATS
from fd_core.ops.sampling.apply_logit_bias import ragged
from fd_core.ops.schema import EXACT, Case, In, InOut, op


def _case(rows: int, vocab: int, most: int) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        logits = rng.standard_normal((rows, vocab)).astype(dtype)
        return {"logits": logits, **ragged(rng, rows, vocab, most)}

    return Case(f"{rows}x{vocab}-{most}", args, FLOATS)


CASES = [_case(0, 3, 0), _case(9, 1, 2), _case(20, 10, 8), _case(5, 3000, 300)]


@op(family="sampling", cases=CASES, tolerance=EXACT, rows=("logits",))
def apply_allowed_tokens(logits: InOut, offsets: In, ids: In) -> None:
    """logits[r, v] = -inf for every v not in ids[offsets[r] : offsets[r + 1]].

    logits [n, V] float32 | bfloat16 | float16; offsets [n + 1] int32 ascending; ids [m] int64. Ids
    outside [0, V) do not count; a row whose list holds no other id is left untouched.
    """
    for r, x in enumerate(logits):
        allowed = ids[offsets[r] : offsets[r + 1]]
        allowed = allowed[(allowed >= 0) & (allowed < x.size)]
        if allowed.size:
            kept = x[allowed].copy()
            x[...] = -np.inf
            x[allowed] = kept
