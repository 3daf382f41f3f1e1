"""swap_blocks: copies of blocks from one cache into another (preemption by swapping)."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.ops.checks import check
from fd_core.ops.memory._pairs import check_pairs
from fd_core.ops.memory.copy_blocks import DTYPES, any_values
from fd_core.ops.schema import EXACT, Case, In, InOut, op


def _case(inner: tuple[int, ...], src: int, dst: int, pairs: int, bench: bool = False) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        return {
            "src": any_values(rng, (src, *inner), dtype),
            "dst": any_values(rng, (dst, *inner), dtype),
            "src_block_ids": rng.integers(0, max(src, 1), pairs),
            "dst_block_ids": rng.permutation(dst)[:pairs],
        }

    name = f"{src}-to-{dst}-" + "x".join(map(str, inner)) + f"-{pairs}"
    return Case(name, args, DTYPES, bench, bytes=lambda size: 2 * size * pairs * int(np.prod(inner)))


CASES = [_case((3,), 4, 6, 0), _case((3, 5), 4, 6, 5), _case((), 3, 3, 2), _case((2, 0), 3, 3, 2)]
CASES += [_case((4, 16, 128), 64, 32, 16, bench=True)]


@op(family="memory", cases=CASES, tolerance=EXACT)
def swap_blocks(src: In, dst: InOut, src_block_ids: In, dst_block_ids: In) -> None:
    """dst[dst_block_ids[i]] = src[src_block_ids[i]].

    src [S, ...] and dst [D, ...]: one element type, equal block shapes, blocks contiguous (they may be
    strided apart), in separate memory, possibly of different devices (device cache and host pool).
    Both lists int64 [n], in range, a destination once: ValueError, before anything is written. The
    call returns when the copies are ordered on the device's stream. Within one cache: `copy_blocks`.
    """
    check(src.shape[1:] == dst.shape[1:], "swap_blocks", "dst", src.shape[1:], dst.shape[1:])
    check_pairs("swap_blocks", src_block_ids, src.shape[0], dst_block_ids, dst.shape[0])
    dst[dst_block_ids] = src[src_block_ids]
