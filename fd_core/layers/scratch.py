"""Activation memory shared by all layers: one set of buffers for the whole model."""

from __future__ import annotations

from fd_core.api.dtype import DType
from fd_core.api.platform import Platform
from fd_core.layers.buffers import Buffer


class Scratch:
    """Buffers by name and shape. Layers run one after another, so equal requests share memory."""

    def __init__(self, platform: Platform, max_num_tokens: int) -> None:
        self._platform = platform
        self.max_num_tokens = max_num_tokens
        self._buffers: dict[tuple[str, tuple[int, ...], DType], Buffer] = {}

    def buffer(self, name: str, shape: tuple[int, ...], dtype: DType) -> Buffer:
        """[max_num_tokens, *shape] of `dtype`; asked for while layers are built, never in a step."""
        key = (name, shape, dtype)
        if key not in self._buffers:
            full = (self.max_num_tokens, *shape)
            self._buffers[key] = Buffer.empty(self._platform, full, dtype)
        return self._buffers[key]

    @property
    def nbytes(self) -> int:
        return sum(buffer.tensor.nbytes for buffer in self._buffers.values())
