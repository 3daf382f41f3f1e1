"""Persistent step buffers: a host array the engine writes and its device twin that kernels read."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.dtype import DType
from fd_core.api.platform import Platform
from fd_core.api.tensor import Tensor, from_numpy
from fd_core.layers.buffers import Buffer

_MAX_VIEWS = 4096


class TwinBuffer:
    """`host` [n, ...] and its device twin, at addresses that never change.

    On platforms whose memory is the host's both are the same bytes and `upload` does nothing.
    Views are kept: a kernel call with one costs no conversion.
    """

    def __init__(self, platform: Platform, shape: tuple[int, ...], dtype: DType, fill: int = 0) -> None:
        self.host: np.ndarray[Any, Any] = np.full(shape, fill, dtype.numpy())
        self.device = Buffer(platform.from_host(self.host))
        self._shared = self.device.tensor.ptr == self.host.__array_interface__["data"][0]
        self._blocks: dict[tuple[int, int], Tensor] = {}

    def upload(self, rows: int) -> Tensor:
        """Make the first `rows` rows of the host array visible to the device."""
        view = self.device.rows(rows)
        if not self._shared and rows:
            view.copy_from(from_numpy(self.host[:rows]))
        return view

    def block(self, rows: int, columns: int) -> Tensor:
        """The first rows * columns elements on the device, as a matrix."""
        view = self._blocks.get((rows, columns))
        if view is None:
            if len(self._blocks) >= _MAX_VIEWS:
                self._blocks.clear()
            flat = self.device.tensor.view(-1).slice(0, rows * columns)
            view = self._blocks[rows, columns] = flat.view(rows, columns)
        return view
