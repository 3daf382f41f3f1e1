"""Experts in the layouts of the dense integer methods, stacked; gate and up are matrices of their own, so
that both start at a tile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from fd_core.api.quant import ExpertMethod, ExpertSpec
from fd_core.api.tensor import Tensor, TensorSpec
from fd_cuda import library

if TYPE_CHECKING:
    from fd_cuda.quant import IntegerLinear

#: Stacks of a matrix, in the order of what `process_weights` returns.
NAMES = ("codes", "scales")
#: Matrices of an expert that a stack holds side by side.
PARTS = {"gate_up_proj": 2, "down_proj": 1}


class PackedExperts(ExpertMethod):
    """`kernel`: the export that takes the stacks in the order of `packed_weights`.

    gate_up_proj.* [experts, 2, ...] and down_proj.* [experts, ...], each what `method.packed_specs` says of
    one matrix.
    """

    method: IntegerLinear

    def __init__(self, method: IntegerLinear, kernel: str) -> None:
        super().__init__(method)
        self._run = library.function(kernel)

    def packed_weights(self, spec: ExpertSpec) -> dict[str, TensorSpec]:
        return {
            f"{matrix}.{name}": TensorSpec((spec.experts, *lead, *one.shape), one.dtype)
            for matrix, linear in spec.matrices.items()
            for lead in [(PARTS[matrix],) if PARTS[matrix] > 1 else ()]
            for name, one in zip(
                NAMES,
                self.method.packed_specs(linear.out_features // PARTS[matrix], linear.in_features),
                strict=True,
            )
        }

    def pack(
        self, spec: ExpertSpec, expert: int, weights: Mapping[str, Tensor], packed: Mapping[str, Tensor]
    ) -> None:
        for matrix, linear in spec.matrices.items():
            rows = linear.out_features // PARTS[matrix]
            stacks = [packed[f"{matrix}.{name}"].select(expert) for name in NAMES]
            for i, own in enumerate(_parts(weights, matrix, rows)):
                made = self.method.process_weights(replace(linear, out_features=rows), own)
                for stack, tensor in zip(stacks, made, strict=True):
                    (stack.select(i) if PARTS[matrix] > 1 else stack).copy_from(tensor)

    def apply(
        self,
        x: Tensor,
        ends: Tensor,
        owners: Tensor,
        spec: ExpertSpec,
        packed: Mapping[str, Tensor],
        out: Tensor,
    ) -> None:
        self._run(x, ends, *packed.values(), spec.intermediate, out)


def _parts(weights: Mapping[str, Tensor], matrix: str, rows: int) -> Iterator[dict[str, Tensor]]:
    """What `process_weights` takes of each `rows` outputs of a matrix."""
    given = {name: weights[key] for name, key in _keys(matrix).items() if key in weights}
    for first in range(0, given["weight"].shape[0], rows):
        yield {name: tensor.slice(first, first + rows) for name, tensor in given.items()}


def _keys(matrix: str) -> dict[str, str]:
    return {"weight": matrix, "scale": f"{matrix}.scale", "zero": f"{matrix}.zero"}
