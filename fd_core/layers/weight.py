"""What a layer needs from a checkpoint, declared before anything is read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from fd_core.api.tensor import Shape, Tensor, TensorSpec


@dataclass(frozen=True, slots=True)
class Piece:
    """One checkpoint tensor and its place in a parameter.

    `shape` is that of the output-major layout ([out, in]). `linear`: a matrix of a linear layer,
    which an input-major checkpoint stores as [in, out]. `index` selects the part of the parameter
    that receives it; `transposed`: that part wants [in, out].
    """

    name: str
    shape: Shape
    linear: bool = False
    index: tuple[int | slice, ...] = ()
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class Parameter:
    """A host tensor to be filled from `pieces`, which cover it without overlap."""

    spec: TensorSpec
    pieces: tuple[Piece, ...]

    @property
    def nbytes(self) -> int:
        return self.spec.nbytes


def whole(name: str, spec: TensorSpec, linear: bool = False) -> Parameter:
    """A parameter that is one checkpoint tensor."""
    return Parameter(spec, (Piece(name, spec.shape, linear),))


class Weighted(ABC):
    """A layer with weights. The loader fills all parameters of one layer, hands them over, goes on."""

    @abstractmethod
    def parameters(self) -> dict[str, Parameter]:
        """What to bring, by the layer's own names."""

    @abstractmethod
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Take the host tensors of `parameters()`; they may be freed (or be read-only) afterwards."""
