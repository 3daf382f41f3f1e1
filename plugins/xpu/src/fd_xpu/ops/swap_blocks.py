"""swap_blocks: copies of blocks from one cache into another."""

from __future__ import annotations

from fd_xpu.call import PaddleKernel
from fd_xpu.compute import Value, host
from fd_xpu.ops.copy_blocks import block, check_pairs


@PaddleKernel
def swap_blocks(src: Value, dst: Value, src_block_ids: Value, dst_block_ids: Value) -> None:
    """Block by block, in place. Between host and device fd-core copies blocks with the platform instead."""
    sources, targets = host(src_block_ids), host(dst_block_ids)
    check_pairs("swap_blocks", sources, src.shape[0], targets, dst.shape[0])
    for source, target in zip(sources.tolist(), targets.tolist(), strict=True):
        block(dst, 0, target).copy_(block(src, 0, source), False)
