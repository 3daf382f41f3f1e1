"""copy_blocks: copies between blocks of one cache."""

from __future__ import annotations

from fd_xpu.call import PaddleKernel
from fd_xpu.compute import Array, Value, check, check_host_range, host
from fd_xpu.framework import paddle


@PaddleKernel
def copy_blocks(cache: Value, src_block_ids: Value, dst_block_ids: Value, block_dim: int) -> None:
    """Block by block, in place: a block is a view of the cache."""
    name = "copy_blocks"
    check(
        0 <= block_dim < cache.ndim, f"{name}.block_dim", f"a dimension of {list(cache.shape)}", block_dim
    )
    sources, targets = host(src_block_ids), host(dst_block_ids)
    check_pairs(name, sources, cache.shape[block_dim], targets, cache.shape[block_dim])
    chained = sorted({*sources.tolist()} & {*targets.tolist()})
    check(not chained, f"{name}.src_block_ids", "no block that is also a destination", chained)
    for source, target in zip(sources.tolist(), targets.tolist(), strict=True):
        block(cache, block_dim, target).copy_(block(cache, block_dim, source), False)


def check_pairs(op: str, sources: Array, src_blocks: int, targets: Array, dst_blocks: int) -> None:
    """Equal lengths, ids within the caches, no destination twice."""
    check(sources.shape == targets.shape, f"{op}.dst_block_ids", sources.shape, targets.shape)
    check_host_range(f"{op}.src_block_ids", sources, 0, src_blocks)
    check_host_range(f"{op}.dst_block_ids", targets, 0, dst_blocks)
    check(
        len({*targets.tolist()}) == targets.size, f"{op}.dst_block_ids", "each block once", targets.tolist()
    )


def block(cache: Value, dim: int, index: int) -> Value:
    """A view of one block, that dimension kept."""
    shape, strides = list(cache.shape), list(cache.strides)
    shape[dim] = 1
    start = cache.data_ptr() - paddle.as_strided(cache, shape, strides, 0).data_ptr()
    return paddle.as_strided(cache, shape, strides, start + index * strides[dim] * cache.element_size())
