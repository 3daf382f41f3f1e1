"""temperature_softmax: logits to probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.dtype import float32
from fd_core.ops.schema import Case, In, Out, Tolerance, op

TOLERANCE = Tolerance(
    "(x - max) / T by a rounded reciprocal is off by 2 ulp of a number that is at most 88 where the "
    "exponential is normal: 88 * 2^-23 = 1e-5 relative; the exponential, the sum and the scaling add a "
    "few ulp. Results below float32's normal range lose bits: 2^-126 absolute",
    {"float32": (1.3e-5, 1.2e-38)},
)


def _case(rows: int, vocab: int, kind: str = "normal", bench: bool = False) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        logits = (8 * rng.standard_normal((rows, vocab))).astype(dtype)
        temperature = rng.uniform(0.2, 2, rows).astype(dtype)
        if kind == "greedy":
            temperature[::2] = 0
            logits = np.round(logits)
        elif kind == "masked":
            logits[rng.random((rows, vocab)) < 0.7] = -np.inf
            logits[rng.random((rows, vocab)) < 0.2] = np.nan
            logits[:1] = -np.inf
            logits[1:2, 3:5] = np.inf
        return {"logits": logits, "temperature": temperature}

    return Case(f"{rows}x{vocab}-{kind}", args, (float32,), bench, bytes=8 * rows * vocab)


CASES = [_case(0, 4), _case(1, 1), _case(3, 31), _case(2, 20011), _case(5, 700, "greedy")]
CASES += [_case(4, 100, "masked"), _case(1, 151936, bench=True), _case(32, 151936, bench=True)]


@op(
    family="sampling",
    infer=lambda logits, temperature: [logits],
    cases=CASES,
    tolerance=TOLERANCE,
    rows=("logits", "temperature", "probs"),
)
def temperature_softmax(logits: In, temperature: In, probs: Out) -> None:
    """probs[r] = softmax(logits[r] / temperature[r]) in float32.

    logits [n, V] float32; temperature [n] float32, finite and >= 0; probs like logits, may be logits.
    NaN counts as -inf. A row is one-hot at its argmax (lowest id among ties) where the temperature
    is 0 or has no finite reciprocal, and where the largest logit is infinite. Bad input: a
    temperature that is negative, NaN or infinite.
    """
    for row, values in enumerate(logits):
        x = np.where(np.isnan(values), -np.inf, values).astype(np.float64)
        hot = int(np.flatnonzero(~np.isnan(values))[0]) if np.any(~np.isnan(values)) else 0
        if np.max(x) > -np.inf:
            hot = int(np.argmax(x))
        if temperature[row] < np.float32(2.0**-128) or not np.isfinite(x[hot]):
            result = np.zeros_like(x)
            result[hot] = 1
        else:
            e = np.exp((x - x[hot]) / float(temperature[row]))
            result = e / e.sum()
        probs[row] = result.astype(np.float32)
