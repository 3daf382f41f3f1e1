"""embedding: rows of a table by id."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.dtype import FLOATS
from fd_core.api.tensor import TensorSpec
from fd_core.ops.checks import check_range
from fd_core.ops.schema import EXACT, Case, In, Out, op


def _case(tokens: int, vocab: int, hidden: int, ids: str, bench: bool = False) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        weight = rng.standard_normal((vocab, hidden)).astype(dtype)
        return {"ids": rng.integers(0, max(vocab, 1), tokens).astype(ids), "weight": weight}

    name = f"{tokens}-{vocab}x{hidden}-{ids}"
    return Case(name, args, FLOATS, bench, bytes=lambda size: 2 * size * tokens * hidden)


CASES = [_case(0, 5, 8, "int32"), _case(1, 1, 1, "int64"), _case(7, 5, 33, "int32")]
CASES += [_case(9, 40, 128, "int64"), _case(512, 4096, 1024, "int64", bench=True)]


def _infer(ids: TensorSpec, weight: TensorSpec) -> list[TensorSpec]:
    return [TensorSpec((ids.shape[0], weight.shape[1]), weight.dtype)]


@op(family="embedding", infer=_infer, cases=CASES, tolerance=EXACT, rows=("ids", "out"))
def embedding(ids: In, weight: In, out: Out) -> None:
    """out[t] = weight[ids[t]], converted to out's type.

    ids [T] int32 | int64, each in [0, V): ValueError names the first other one and its position,
    before anything is written. weight [V, H] and out [T, H] float32 | bfloat16 | float16, not
    necessarily alike (the default is weight's type); rows may be strided.
    """
    check_range("embedding", "ids", ids, 0, weight.shape[0])
    out[...] = weight[ids].astype(out.dtype)
