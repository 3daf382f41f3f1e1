"""copy_blocks: copies between blocks of one cache (copy on write, beam forks)."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.dtype import DType, bfloat16, float32, int64, uint8
from fd_core.ops.checks import check, check_data
from fd_core.ops.memory._pairs import check_pairs
from fd_core.ops.schema import EXACT, Case, In, InOut, op

DTYPES: tuple[DType, ...] = (float32, bfloat16, uint8, int64)


def any_values(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """Small integers, exact in every element type."""
    return rng.integers(0, 100, shape).astype(dtype)


def _case(shape: tuple[int, ...], block_dim: int, pairs: int, bench: bool = False) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        order = rng.permutation(shape[block_dim])
        sources = order[: max(1, len(order) - pairs)]
        return {
            "cache": any_values(rng, shape, dtype),
            "src_block_ids": rng.choice(sources, pairs).astype(np.int64),
            "dst_block_ids": order[len(order) - pairs :].astype(np.int64),
            "block_dim": block_dim,
        }

    name = "x".join(map(str, shape)) + f"-dim{block_dim}-{pairs}"
    touched = 2 * pairs * int(np.prod(shape)) // max(1, shape[block_dim])
    return Case(name, args, DTYPES, bench, bytes=lambda size: size * touched)


CASES = [_case((6, 3), 0, 0), _case((6, 3), 0, 4), _case((2, 7, 3, 5), 1, 3), _case((2, 2, 9), 2, 5)]
CASES += [_case((2, 64, 4, 16, 128), 1, 16, bench=True)]


@op(family="memory", cases=CASES, tolerance=EXACT)
def copy_blocks(cache: InOut, src_block_ids: In, dst_block_ids: In, block_dim: int) -> None:
    """cache[..., dst_block_ids[i], ...] = cache[..., src_block_ids[i], ...] along `block_dim`.

    cache: contiguous, any element type and rank; both lists int64 [n], each id in [0, blocks). A
    destination appears once, and no block is both source and destination in one call (a chain would
    depend on the order of the copies): ValueError, before anything is written. n = 0 does nothing.
    """
    check(
        0 <= block_dim < cache.ndim, "copy_blocks", "block_dim", f"a dimension of {cache.shape}", block_dim
    )
    blocks = cache.shape[block_dim]
    check_pairs("copy_blocks", src_block_ids, blocks, dst_block_ids, blocks)
    chained = np.intersect1d(src_block_ids, dst_block_ids)
    want = "no block that is also a destination"
    check_data(chained.size == 0, "copy_blocks", "src_block_ids", want, chained.tolist())
    view = np.moveaxis(cache, block_dim, 0)
    view[dst_block_ids] = view[src_block_ids]
