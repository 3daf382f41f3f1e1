"""Root-mean-square normalisation with a learned scale."""

from __future__ import annotations

from collections.abc import Mapping

from fd_core.api.tensor import Tensor, TensorSpec
from fd_core.layers.context import ModelContext
from fd_core.layers.weight import Parameter, Weighted, whole


class RMSNorm(Weighted):
    """The scale is kept in the activations' type, as the ops want it."""

    weight: Tensor

    def __init__(self, context: ModelContext, size: int, eps: float, prefix: str) -> None:
        self.eps = eps
        self._platform = context.platform
        self._ops = context.ops
        self._spec = TensorSpec((size,), context.activation_dtype)
        self._name = f"{prefix}.weight"

    def parameters(self) -> dict[str, Parameter]:
        return {"weight": whole(self._name, self._spec)}

    def load(self, values: Mapping[str, Tensor]) -> None:
        self.weight = self._platform.from_host(values["weight"].numpy())

    def __call__(self, x: Tensor, out: Tensor) -> None:
        """out = norm(x)"""
        self._ops.rms_norm(x, self.weight, self.eps, out)

    def add(self, x: Tensor, residual: Tensor) -> None:
        """residual += x, then x = norm(residual)"""
        self._ops.fused_add_rmsnorm(x, residual, self.weight, self.eps)
