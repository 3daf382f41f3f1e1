"""Experts in the panels of the dense methods, stacked: the kernels take (rows of an expert, panels) as the
dense ones take (rows, panels)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

from fd_core.api.quant import ExpertMethod, ExpertSpec, LinearSpec, QuantMethod
from fd_core.api.tensor import Tensor, TensorSpec
from fd_cpu import library


class PanelExperts(ExpertMethod):
    """`kernel`: the export that takes the stacks in the order of `packed_weights`."""

    def __init__(self, method: QuantMethod, kernel: str) -> None:
        super().__init__(method)
        self._run = getattr(library, kernel)

    @abstractmethod
    def tensors(self, linear: LinearSpec) -> dict[str, TensorSpec]:
        """Those of one expert's matrix, by parameter name."""

    @abstractmethod
    def pack_matrix(self, linear: LinearSpec, weights: Mapping[str, Tensor], to: dict[str, Tensor]) -> None:
        """Fill `tensors` from a plain "weight", and "scale" and "zero" if it lies on the method's grid."""

    def packed_weights(self, spec: ExpertSpec) -> dict[str, TensorSpec]:
        return {
            f"{matrix}.{name}": TensorSpec((spec.experts, *one.shape), one.dtype)
            for matrix, linear in spec.matrices.items()
            for name, one in self.tensors(linear).items()
        }

    def pack(
        self, spec: ExpertSpec, expert: int, weights: Mapping[str, Tensor], packed: Mapping[str, Tensor]
    ) -> None:
        for matrix, linear in spec.matrices.items():
            to = {name: packed[f"{matrix}.{name}"].select(expert) for name in self.tensors(linear)}
            given = {"weight": weights[matrix]}
            given |= {n: weights[f"{matrix}.{n}"] for n in ("scale", "zero") if f"{matrix}.{n}" in weights}
            self.pack_matrix(linear, given, to)

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


class IntegerExperts(PanelExperts):
    """Stacks of what a dense integer method stores."""

    def tensors(self, linear: LinearSpec) -> dict[str, TensorSpec]:
        return self.method.stored_weights(linear)

    def pack_matrix(self, linear: LinearSpec, weights: Mapping[str, Tensor], to: dict[str, Tensor]) -> None:
        packed = self.method.process_weights(linear, weights)
        for name, tensor in self.method.store(linear, packed).items():
            to[name].copy_from(tensor)

    def adopt(self, spec: ExpertSpec, stored: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Where they lie."""
        return {name: stored[name] for name in self.packed_weights(spec)}
