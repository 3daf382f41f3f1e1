"""Random weights that cost a memory copy: for benchmarks, sizing runs and CI."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from fd_core.api.dtype import DType
from fd_core.layers.weight import Parameter, Piece
from fd_core.loader.source import Array, WeightSource

#: Values drawn once; a prime, so that no row length makes the rows of a matrix equal.
_POOL = 1_048_573
_STD = 0.02


class DummySource(WeightSource):
    """Matrices are normal (0.02), norm scales 1, biases 0; equal for equal names and seed."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self._pool = rng.standard_normal(_POOL, np.float32) * np.float32(_STD)
        self._pools: dict[DType, Array] = {}

    def check(self, parameters: Sequence[Parameter], ignored: Sequence[str] = ()) -> None:
        return None

    def read(self, piece: Piece, dtype: DType) -> Array:
        if len(piece.shape) == 1:
            return np.full(piece.shape, float(not piece.name.endswith("bias")), dtype.numpy())
        if dtype not in self._pools:
            self._pools[dtype] = self._pool.astype(dtype.numpy())
        pool = np.roll(self._pools[dtype], zlib.crc32(piece.name.encode()) % _POOL)
        return np.resize(pool, piece.shape)
