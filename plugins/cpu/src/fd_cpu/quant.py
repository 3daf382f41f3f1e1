"""Quantisation methods with layouts of this plug-in's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from fd_core.api.device import DeviceInfo
from fd_core.api.dtype import FLOATS
from fd_core.api.quant import ExpertMethod, LinearSpec, QuantMethod
from fd_core.api.tensor import Tensor, TensorSpec
from fd_core.api.verdict import YES, ReasonCode, Verdict
from fd_cpu import library
from fd_cpu.experts import PanelExperts

#: Output columns of a panel; csrc/include/fd/gemm.h, kPanel.
PANEL = 32


def packed_spec(weight: TensorSpec) -> TensorSpec:
    """The panels [ceil(N / 32), K, 32] of a weight [N, K], in the weight's own type."""
    columns, depth = weight.shape
    return TensorSpec((-(-columns // PANEL), depth, PANEL), weight.dtype)


class PackedLinear(QuantMethod):
    """Method "none": 16-bit or float32 weights, laid out once in panels read as sequential streams."""

    name: ClassVar[str] = "none"
    priority: ClassVar[int] = 100

    def __init__(
        self, device: DeviceInfo, platform: Any, ops: Any, config: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(device, platform, ops, config)
        self._linear = library.linear_packed

    @classmethod
    def supports(cls, spec: LinearSpec, device: DeviceInfo) -> Verdict:
        """Any floating-point weights."""
        if spec.dtype in FLOATS:
            return YES
        want = " | ".join(map(str, FLOATS))
        fix = "name the checkpoint's quantisation method"
        return Verdict.no(
            ReasonCode.DTYPE, f"quantisation none: {spec.prefix}.weight", want, spec.dtype, fix
        )

    def create_weights(self, spec: LinearSpec) -> dict[str, TensorSpec]:
        return {"weight": TensorSpec((spec.out_features, spec.in_features), spec.dtype)}

    def process_weights(self, spec: LinearSpec, weights: Mapping[str, Tensor]) -> Any:
        """The panels, in memory of the platform (huge pages where offered)."""
        packed = self.platform.empty(packed_spec(weights["weight"].spec))
        library.pack_linear_weight(weights["weight"], packed)
        return packed

    def apply(self, x: Tensor, packed: Any, bias: Tensor | None, out: Tensor) -> None:
        self._linear(x, packed, bias, out)

    def experts(self) -> ExpertMethod | None:
        return PackedExperts(self, "experts_packed")


class PackedExperts(PanelExperts):
    """Stacks of the panels of plain weights."""

    def tensors(self, linear: LinearSpec) -> dict[str, TensorSpec]:
        return {"weight": packed_spec(TensorSpec((linear.out_features, linear.in_features), linear.dtype))}

    def pack_matrix(self, linear: LinearSpec, weights: Mapping[str, Tensor], to: dict[str, Tensor]) -> None:
        library.pack_linear_weight(weights["weight"], to["weight"])
