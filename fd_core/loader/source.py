"""Where weights come from: an interface of three methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from fd_core.api.dtype import DType
from fd_core.layers.weight import Parameter, Piece

Array = np.ndarray[Any, Any]


class WeightSource(ABC):
    """A checkpoint, or something that acts like one."""

    @abstractmethod
    def check(self, parameters: Sequence[Parameter], ignored: Sequence[str] = ()) -> None:
        """Raise CheckpointError listing every missing, unexpected or misshapen tensor.

        `ignored`: patterns (`fnmatch`) of names that may be present and are not needed.
        """

    @abstractmethod
    def read(self, piece: Piece, dtype: DType) -> Array:
        """The tensor in `piece.shape` (output-major); maybe strided or read-only.

        `dtype` is what the caller will convert it to; a source may return its own type instead.
        """

    def release(self, piece: Piece) -> None:
        """The tensor was read and copied: its memory may go, until it is read again (optional)."""
        return None

    def close(self) -> None:
        """Let go of files (optional)."""
        return None
