"""Checks of the block lists of `copy_blocks` and `swap_blocks`."""

from __future__ import annotations

import numpy as np

from fd_core.ops.checks import check, check_data, check_range
from fd_core.ops.schema import Array


def check_pairs(op: str, src: Array, src_blocks: int, dst: Array, dst_blocks: int) -> None:
    """Equal lengths, ids within the caches, no destination twice."""
    check(src.shape == dst.shape, op, "dst_block_ids", src.shape, dst.shape)
    check_range(op, "src_block_ids", src, 0, src_blocks)
    check_range(op, "dst_block_ids", dst, 0, dst_blocks)
    first = np.unique(dst, return_index=True)[1]
    again = np.setdiff1d(np.arange(dst.size), first)
    if again.size:
        at = int(again[0])
        check_data(False, op, "dst_block_ids", "each block once", f"{dst[at]} again at position {at}")
