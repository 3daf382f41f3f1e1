"""sample_from_logits: temperature, softmax, filters and draw in one call."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.dtype import float32, int64
from fd_core.api.tensor import TensorSpec
from fd_core.ops.sampling.sample_top_k_top_p import sample_top_k_top_p
from fd_core.ops.sampling.temperature_softmax import temperature_softmax
from fd_core.ops.schema import EXACT, Case, In, Out, op


def _case(rows: int, vocab: int, kind: str = "mixed", bench: bool = False) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        logits = (5 * rng.standard_normal((rows, vocab))).astype(dtype)
        temperature = rng.choice(np.array([0, 0.3, 0.7, 1, 1.5], np.float32), rows)
        top_k = rng.choice(np.array([0, 1, 2, 5, 50, 700, vocab], np.int64), rows)
        top_p = rng.choice(np.array([0, 0.1, 0.5, 0.9, 1], np.float32), rows)
        min_p = rng.choice(np.array([0, 0, 0.01, 0.4, 1], np.float32), rows)
        if kind == "ties":
            logits = np.round(logits / 3).astype(dtype)
        elif kind == "bad":
            logits[rng.random((rows, vocab)) < 0.4] = np.nan
            logits[rng.random((rows, vocab)) < 0.3] = -np.inf
            logits[:1], logits[1:2] = np.nan, -np.inf
            logits[2:3, vocab // 2 :: 7] = np.inf
        elif kind == "usual":
            temperature[:], top_k[:], top_p[:], min_p[:] = 0.8, 50, 0.9, 0
        seed = rng.integers(0, 2**63 - 1, rows)
        position = rng.integers(0, 2**40, rows)
        return {"logits": logits, "temperature": temperature, "top_k": top_k, "top_p": top_p,
                "min_p": min_p, "seed": seed, "position": position}  # fmt: skip

    return Case(f"{rows}x{vocab}-{kind}", args, (float32,), bench, bytes=4 * rows * vocab)


CASES = [_case(0, 4), _case(2, 1), _case(40, 23), _case(40, 300), _case(20, 5000), _case(20, 999, "ties")]
CASES += [_case(12, 70, "bad"), _case(9, 20011, "bad"), _case(1, 151936, "usual", bench=True)]
CASES += [_case(16, 151936, "usual", bench=True)]


def _infer(logits: TensorSpec, **_: Any) -> list[TensorSpec]:
    return [TensorSpec(logits.shape[:1], int64)]


@op(
    family="sampling",
    infer=_infer,
    cases=CASES,
    tolerance=EXACT,
    rows=("logits", "temperature", "top_k", "top_p", "min_p", "seed", "position", "out"),
)
def sample_from_logits(
    logits: In, temperature: In, top_k: In, top_p: In, min_p: In, seed: In, position: In, out: Out
) -> None:
    """sample_top_k_top_p of temperature_softmax, without the probabilities in between.

    logits [n, V] float32, rows may be strided, left as they are; temperature [n] float32, finite and
    >= 0; the rest as in sample_top_k_top_p. A device's kernel gives the token that its own two ops
    give, bit for bit. Devices may differ in the last bits of an exponential: two of them disagree
    where a draw, or the border of a kept set, lies within the tolerance of temperature_softmax.
    """
    probs = np.empty_like(logits)
    temperature_softmax.oracle(logits, temperature, probs)
    sample_top_k_top_p.oracle(probs, top_k, top_p, min_p, seed, position, out)
