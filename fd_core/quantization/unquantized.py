"""Weights as they are in the checkpoint, run by the `linear` op."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from fd_core.api.device import DeviceInfo
from fd_core.api.dtype import FLOATS
from fd_core.api.quant import ExpertMethod, ExpertSpec, LinearSpec, QuantMethod
from fd_core.api.tensor import Tensor, TensorSpec, from_numpy
from fd_core.api.verdict import YES, ReasonCode, Verdict


class Unquantized(QuantMethod):
    """Method "none" for any device with a `linear` kernel (the oracle's included)."""

    name: ClassVar[str] = "none"
    priority: ClassVar[int] = 0

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
        """The weight's copy on the device; the source may be freed."""
        packed = self.platform.empty(weights["weight"].spec)
        packed.copy_from(weights["weight"])
        return packed

    def apply(self, x: Tensor, packed: Any, bias: Tensor | None, out: Tensor) -> None:
        self.ops.linear(x, packed, bias, out)

    def experts(self) -> ExpertMethod | None:
        return PlainExperts(self)


class PlainExperts(ExpertMethod):
    """Matrices [in, out], run by the `moe_expert_ffn` op: for any device with a kernel for it."""

    def packed_weights(self, spec: ExpertSpec) -> dict[str, TensorSpec]:
        return {
            name: TensorSpec((spec.experts, one.in_features, one.out_features), one.dtype)
            for name, one in spec.matrices.items()
        }

    def pack(
        self, spec: ExpertSpec, expert: int, weights: Mapping[str, Tensor], packed: Mapping[str, Tensor]
    ) -> None:
        for name, weight in weights.items():
            turned = np.ascontiguousarray(weight.numpy().T)
            packed[name].select(expert).copy_from(from_numpy(turned))

    def apply(
        self,
        x: Tensor,
        ends: Tensor,
        owners: Tensor,
        spec: ExpertSpec,
        packed: Mapping[str, Tensor],
        out: Tensor,
    ) -> None:
        matrices = (packed["gate_up_proj"], packed["down_proj"], None, None, None, None)
        self.method.ops.moe_expert_ffn(x, ends, *matrices, owners, "none", False, out)
