"""argmax: the id of each row's largest value."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.dtype import FLOATS, int64
from fd_core.api.tensor import TensorSpec
from fd_core.ops.schema import EXACT, Case, In, Out, op


def _case(rows: int, vocab: int, kind: str = "normal", bench: bool = False) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        logits = rng.standard_normal((rows, vocab)).astype(dtype)
        if kind == "ties":
            logits = rng.integers(-2, 2, (rows, vocab)).astype(dtype)
        elif kind == "holes":
            logits[rng.random((rows, vocab)) < 0.5] = np.nan
            logits[rng.random((rows, vocab)) < 0.3] = -np.inf
            logits[:1] = np.nan
        return {"logits": logits}

    return Case(f"{rows}x{vocab}-{kind}", args, FLOATS, bench, bytes=lambda size: size * rows * vocab)


CASES = [_case(0, 5), _case(1, 1), _case(3, 17), _case(5, 8191, "ties"), _case(2, 20000)]
CASES += [_case(4, 33, "holes"), _case(3, 9000, "holes")]
CASES += [_case(1, 151936, bench=True), _case(32, 151936, bench=True)]


@op(
    family="sampling",
    infer=lambda logits: [TensorSpec(logits.shape[:1], int64)],
    cases=CASES,
    tolerance=EXACT,
    rows=("logits", "out"),
)
def argmax(logits: In, out: Out) -> None:
    """out[r] = the lowest id whose logit is the largest of row r.

    logits [n, V] float32 | bfloat16 | float16, rows may be strided; out [n] int64. NaN never wins;
    a row of NaN and -inf alone gives the lowest id that is -inf, or 0 where all are NaN.
    """
    wide = logits.astype(np.float32)
    for row, values in enumerate(wide):
        numbers = np.flatnonzero(~np.isnan(values))
        out[row] = numbers[np.argmax(values[numbers])] if numbers.size else 0
