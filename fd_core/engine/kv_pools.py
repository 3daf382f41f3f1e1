"""The KV cache's memory: one key and one value pool per layer, as the attention backend lays them out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fd_core.api.attention import KVCache, KVLayout
from fd_core.api.platform import Platform
from fd_core.api.tensor import Tensor, TensorSpec, from_numpy

Pairs = list[tuple[int, int]]


class KVPools:
    """Device pools for `blocks` blocks, and host pools for `host_blocks` swapped ones.

    Swapping needs the block count in the layout's first dimension, so that a block is one piece. Copies
    queue behind the steps launched so far and before those to come, so nobody waits for them: the host
    itself never reads a swapped block.
    """

    def __init__(
        self, platform: Platform, ops: Any, layouts: list[KVLayout], blocks: int, host_blocks: int = 0
    ) -> None:
        if host_blocks and any(layout.block_dim != 0 for layout in layouts):
            raise ValueError(
                "swap_space: wants an attention backend whose cache has blocks in dimension 0; "
                "choose another backend or set swap_space to 0"
            )
        self.ops = ops
        self._transfers = platform.transfers()
        self.device = [self._layer(platform.empty, layout, blocks) for layout in layouts]
        pinned = self._transfers.pinned
        self.host = [self._layer(pinned, layout, host_blocks) for layout in layouts] if host_blocks else []

    @staticmethod
    def _layer(make: Any, layout: KVLayout, blocks: int) -> KVCache:
        spec = TensorSpec(layout.pool_shape(blocks), layout.dtype)
        return KVCache(make(spec), make(spec))

    def swap_out(self, pairs: Pairs) -> None:
        """Copy (device, host) block pairs of every layer."""
        self._copy(self.device, self.host, pairs)

    def swap_in(self, pairs: Pairs) -> None:
        """Copy (host, device) block pairs of every layer."""
        self._copy(self.host, self.device, pairs)

    def _copy(self, src: list[KVCache], dst: list[KVCache], pairs: Pairs) -> None:
        if not pairs:
            return
        shared = src[0].key.storage.on_host and dst[0].key.storage.on_host
        copy = self._swap if shared else self._queue
        for a, b in zip(src, dst, strict=True):
            copy(a.key, b.key, pairs)
            copy(a.value, b.value, pairs)

    def _swap(self, src: Tensor, dst: Tensor, pairs: Pairs) -> None:
        sources, targets = (from_numpy(np.array(ids, np.int64)) for ids in zip(*pairs, strict=True))
        self.ops.swap_blocks(src, dst, sources, targets)

    def _queue(self, src: Tensor, dst: Tensor, pairs: Pairs) -> None:
        for a, b, count in _runs(pairs):
            self._transfers.copy(dst.slice(b, b + count), src.slice(a, a + count))


def _runs(pairs: Pairs) -> Iterator[tuple[int, int, int]]:
    """Pairs that continue one another on both sides, as (first source, first target, count)."""
    first, count = pairs[0], 1
    for pair in pairs[1:]:
        if pair == (first[0] + count, first[1] + count):
            count += 1
        else:
            yield (*first, count)
            first, count = pair, 1
    yield (*first, count)
