"""The KV cache's memory: one key and one value pool per layer, as the attention backend lays them out."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.attention import KVCache, KVLayout
from fd_core.api.platform import Platform
from fd_core.api.tensor import Tensor, TensorSpec, empty_host, from_numpy

Pairs = list[tuple[int, int]]


class KVPools:
    """Device pools for `blocks` blocks, and host pools for `host_blocks` swapped ones.

    Swapping needs the block count in the layout's first dimension, so that a block is one piece.
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
        self.platform = platform
        self.device = [self._layer(platform.empty, layout, blocks) for layout in layouts]
        self.host = (
            [self._layer(empty_host, layout, host_blocks) for layout in layouts] if host_blocks else []
        )

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
        sources, targets = (from_numpy(np.array(ids, np.int64)) for ids in zip(*pairs, strict=True))
        for a, b in zip(src, dst, strict=True):
            self._copy_blocks(a.key, b.key, sources, targets)
            self._copy_blocks(a.value, b.value, sources, targets)

    def _copy_blocks(self, src: Tensor, dst: Tensor, sources: Tensor, targets: Tensor) -> None:
        if src.storage.on_host and dst.storage.on_host:
            self.ops.swap_blocks(src, dst, sources, targets)
            return
        for a, b in zip(sources.numpy().tolist(), targets.numpy().tolist(), strict=True):
            self.platform.copy_(dst.select(b), src.select(a))
