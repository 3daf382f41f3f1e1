"""Integer weights as numbers, whatever order a file or a device keeps them in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fd_core.api.quant import Grid
from fd_core.api.tensor import TensorSpec
from fd_core.quantization.config import QuantError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Codes:
    """A weight [out, in]: (code - zero) * scale. `code` [out, in] int8; `scale` float32 and `zero` int8
    (None: 0) [out, groups], neighbours in groups of equal size, the last one perhaps shorter."""

    code: Array
    scale: Array
    zero: Array | None

    def weight(self, group: int) -> Array:
        """float32 [out, in]; `group` inputs share a scale, 0: all. A quotient by its scale rounds to the
        code again: products have 24 bits, codes at most nine."""
        level = self.code.astype(np.float32)
        for part, g in parts_of(level.shape[1], group):
            if self.zero is not None:
                level[:, part] -= self.zero[:, g : g + 1]
            level[:, part] *= self.scale[:, g : g + 1]
        return level

    def check(self, grid: Grid, name: str) -> None:
        """QuantError where `grid` does not hold them."""
        ranges = [("codes", self.code, (grid.low, grid.high))]
        if self.zero is not None:
            ranges.append(("zero points", self.zero, grid.zeros or (0, 0)))
        for what, values, (low, high) in ranges:
            if values.size and not low <= values.min() <= values.max() <= high:
                raise QuantError(
                    f"{name}: want {what} from {low} to {high}, have {values.min()} to {values.max()}; "
                    "fix: convert the 16-bit checkpoint with fd quantize on this platform"
                )


def parts_of(depth: int, group: int) -> list[tuple[slice, int]]:
    """The inputs of each group, and its number; `group` 0: one for all."""
    step = group or max(depth, 1)
    return [(slice(k, k + step), g) for g, k in enumerate(range(0, depth, step))]


def rounded_codes(weight: Array, scale: Array, zero: Array | None, grid: Grid) -> Codes:
    """The codes of a weight [out, in] that lies on a grid of these scales and zero points [out, groups]."""
    code = np.empty(weight.shape, np.int8)
    for part, g in parts_of(weight.shape[1], grid.group):
        one = scale[:, g : g + 1]
        near = np.rint(np.divide(weight[:, part], one, where=one != 0, out=np.zeros_like(weight[:, part])))
        near += 0 if zero is None else zero[:, g : g + 1]
        code[:, part] = np.clip(near, grid.low, grid.high)
    return Codes(code, scale.astype(np.float32), None if zero is None else zero.astype(np.int8))


class CodeFormat(ABC):
    """How a checkpoint holds the codes of a matrix. One is made for the grid of the method that takes
    them."""

    name: ClassVar[str]
    #: Whether matrices that run as one are stored as one, under the first one's name.
    joined: ClassVar[bool] = False

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def groups(self, depth: int) -> int:
        """Scales of an output with `depth` inputs."""
        return -(-depth // self.grid.group) if self.grid.group else 1

    @abstractmethod
    def tensors(self, columns: int, depth: int) -> dict[str, TensorSpec]:
        """Those of a weight [columns, depth], by parameter name."""

    @abstractmethod
    def decode(self, stored: Mapping[str, Array], columns: int, depth: int) -> Codes:
        """What they mean; QuantError where that is no grid that is read."""
