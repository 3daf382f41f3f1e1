"""group_swiglu_with_masked: swiglu of the valid rows of every expert's buffer."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.dtype import FLOATS
from fd_core.api.tensor import TensorSpec
from fd_core.ops.activation.silu import TOLERANCE
from fd_core.ops.activation.swiglu import silu_mul
from fd_core.ops.checks import check_range
from fd_core.ops.schema import Case, In, Out, op


def _case(shape: tuple[int, int, int], counts: list[int], ids: str, bench: bool = False) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        x = (rng.standard_normal(shape) * 3).astype(dtype)
        return {"x": x, "token_nums_per_expert": np.array(counts, ids)}

    name = "x".join(map(str, shape)) + f"-{ids}"
    return Case(name, args, FLOATS, bench, bytes=lambda size: 3 * size * sum(counts) * shape[2] // 2)


CASES = [_case((4, 8, 32), [5, 8, 0, 3], "int64"), _case((4, 8, 32), [5, 8, 0, 3], "int32")]
CASES += [
    _case((2, 3, 14), [1, 3], "int32"),
    _case((0, 3, 8), [], "int64"),
    _case((2, 0, 8), [0, 0], "int32"),
]
CASES += [_case((8, 64, 2048), [64, 3, 0, 17, 64, 1, 9, 30], "int64", bench=True)]


def _infer(x: TensorSpec, token_nums_per_expert: TensorSpec) -> list[TensorSpec]:
    return [TensorSpec((*x.shape[:-1], x.shape[-1] // 2), x.dtype)]


@op(family="activation", infer=_infer, cases=CASES, tolerance=TOLERANCE)
def group_swiglu_with_masked(x: In, token_nums_per_expert: In, out: Out) -> None:
    """out[e, c] = silu(x[e, c, :D]) * x[e, c, D:] for c < token_nums_per_expert[e], else 0.

    x [E, C, 2D] float32 | bfloat16 | float16 contiguous; token_nums_per_expert [E] int32 | int64, each
    in [0, C]: a larger one is an error; out [E, C, D]. float32 inside, one rounding.
    Specification ops-quant-moe §9.
    """
    half, capacity = x.shape[2] // 2, x.shape[1]
    counts = token_nums_per_expert
    check_range("group_swiglu_with_masked", "token_nums_per_expert", counts, 0, capacity + 1)
    valid = np.arange(capacity)[None, :] < counts[:, None]
    product = silu_mul(x[..., :half], x[..., half:])
    out[...] = np.where(valid[..., None], product, 0.0).astype(np.float32).astype(out.dtype)
