"""tritonmoe_preprocess: token slots grouped by expert, padded to the block of a grouped product."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.dtype import int32, int64
from fd_core.api.tensor import TensorSpec
from fd_core.ops.checks import DataError
from fd_core.ops.schema import EXACT, Case, In, Out, op


def _case(shape: tuple[int, ...], experts: int, block: int, *, absent: bool = False) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        ids = rng.integers(-1 if absent else 0, experts, shape).astype(dtype)
        return {"topk_ids": ids, "num_experts": experts, "GEMM_BLOCK_SIZE_M": block}

    name = "x".join(map(str, shape)) + f"-e{experts}-b{block}" + "-absent" * absent
    return Case(name, args, (int64, int32))


CASES = [
    _case((1, 1), 8, 16),
    _case((0, 4), 8, 16),
    _case((16, 4), 8, 4),
    _case((128,), 8, 16, absent=True),
    _case((2, 64), 64, 16),
    _case((64, 2), 1, 1, absent=True),
    _case((8, 1), 8, 128),
    _case((2048, 8), 64, 32, absent=True),
    _case((700, 8), 1024, 256),
]


def _check_sizes(experts: int, block: int) -> None:
    if experts < 1 or block < 1:
        text = f"want num_experts and GEMM_BLOCK_SIZE_M >= 1, have {experts} and {block}"
        raise ValueError(f"tritonmoe_preprocess: {text}")


def _outputs(topk_ids: TensorSpec, num_experts: int, GEMM_BLOCK_SIZE_M: int) -> list[TensorSpec]:
    _check_sizes(num_experts, GEMM_BLOCK_SIZE_M)
    n = int(np.prod(topk_ids.shape))
    block = GEMM_BLOCK_SIZE_M
    padded = n * block if n < num_experts + 1 else n + (num_experts + 1) * (block - 1)
    return [
        TensorSpec((padded,), int32),
        TensorSpec((-(-padded // block),), int32),
        TensorSpec((1,), int32),
    ]


@op(family="moe", infer=_outputs, cases=CASES, tolerance=EXACT)
def tritonmoe_preprocess(
    topk_ids: In,
    num_experts: int,
    GEMM_BLOCK_SIZE_M: int,
    sorted_ids: Out,
    experts_ids: Out,
    num_tokens_post_pad: Out,
) -> None:
    """Flat slot indices grouped by expert, each group padded to whole blocks.

    topk_ids, any shape, int64 or int32: an expert, or -1 for one that is elsewhere. With n slots, E
    experts and block B: sorted_ids [P] int32, P = n * B if n < E + 1 else n + (E + 1) * (B - 1), holds
    the groups -1, 0 .. E - 1, ascending inside, with n for padding and for what is left over;
    experts_ids [ceil(P / B)] int32 the group of each block, -1 beyond the last;
    num_tokens_post_pad [1] int32 the padded total, group -1 included. Raises ValueError for ids outside
    -1 .. E - 1, B < 1, E < 1. Source: specification ops-quant-moe §5.
    """
    flat, block = topk_ids.reshape(-1), GEMM_BLOCK_SIZE_M
    _check_sizes(num_experts, block)
    if flat.size and not (flat.min() >= -1 and flat.max() < num_experts):
        raise DataError(f"tritonmoe_preprocess.topk_ids: want -1 .. {num_experts - 1}")
    sorted_ids[...] = flat.size
    experts_ids[...] = -1
    at = 0
    for expert in range(-1, num_experts):
        slots = np.flatnonzero(flat == expert)
        blocks = -(-slots.size // block)
        sorted_ids[at : at + slots.size] = slots
        experts_ids[at // block : at // block + blocks] = expert
        at += blocks * block
    num_tokens_post_pad[...] = at
