"""Experts in the layouts of the dense integer methods, stacked; gate and up are matrices of their own, so
that both start at a tile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from fd_core.api.quant import ExpertMethod, ExpertSpec
from fd_core.api.tensor import Tensor, TensorSpec
from fd_cuda import library

if TYPE_CHECKING:
    from fd_cuda.quant import IntegerLinear

#: Stacks of a matrix, in the order in which the packer of a dense layer fills them.
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
        self._pack = library.function(method.packer)

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
        for matrix in spec.matrices:
            plain = self.method.platform.empty(weights[matrix].spec)
            plain.copy_from(weights[matrix])
            stacks = [packed[f"{matrix}.{name}"].select(expert) for name in NAMES]
            for part, places in _parts(plain, stacks, PARTS[matrix]):
                self._pack(part, *places)

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


def _parts(plain: Tensor, stacks: list[Tensor], number: int) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Each of a matrix's parts [out / number, in], with its places in an expert's stacks."""
    if number == 1:
        yield plain, stacks
        return
    rows = plain.shape[0] // number
    for i in range(number):
        yield plain.slice(i * rows, (i + 1) * rows), [stack.select(i) for stack in stacks]
