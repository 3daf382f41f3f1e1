"""Weights as they are in the checkpoint, run by the `linear` op."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from fd_core.api.device import DeviceInfo
from fd_core.api.dtype import FLOATS
from fd_core.api.quant import LinearSpec, QuantMethod
from fd_core.api.tensor import Tensor, TensorSpec
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
