"""gather_tokens: rows of a tensor by index."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.dtype import bfloat16, float32, int64, uint8
from fd_core.api.tensor import TensorSpec
from fd_core.ops.checks import check_range
from fd_core.ops.schema import EXACT, Case, In, Out, op


def _case(rows: int, inner: tuple[int, ...], picks: int, ids: str, bench: bool = False) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        src = rng.integers(0, 100, (rows, *inner)).astype(dtype)
        return {"src": src, "indices": rng.integers(-1, rows, picks).astype(ids)}

    name = f"{picks}-of-{rows}" + "".join(f"x{n}" for n in inner) + f"-{ids}"
    touched = 2 * picks * int(np.prod(inner))
    return Case(name, args, (float32, bfloat16, uint8, int64), bench, bytes=lambda size: size * touched)


CASES = [_case(5, (8,), 0, "int64"), _case(5, (), 7, "int32"), _case(5, (3, 4), 9, "int64")]
CASES += [_case(0, (4,), 3, "int32"), _case(512, (1024,), 64, "int32", bench=True)]


@op(
    family="padding",
    infer=lambda src, indices: [TensorSpec((*indices.shape, *src.shape[1:]), src.dtype)],
    cases=CASES,
    tolerance=EXACT,
    rows=("indices", "out"),
)
def gather_tokens(src: In, indices: In, out: Out) -> None:
    """out[i] = src[indices[i]]; a negative index gives a row of zeros.

    src [N, ...] of any element type and rank >= 1, rows contiguous (they may be strided apart);
    indices [M] int32 | int64, each < N: ValueError names the first other one, before anything is
    written; out [M, ...]. The specification (ops-attention-kv §1) leaves the public signature open;
    this is its proposal.
    """
    check_range("gather_tokens", "indices", indices, np.iinfo(np.int64).min, src.shape[0])
    out[...] = 0
    wanted = indices >= 0
    out[wanted] = src[indices[wanted]]
