"""The quantisation interface: what the loader must bring, packing once, applying often."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from fd_core.api.device import DeviceInfo
from fd_core.api.dtype import DType
from fd_core.api.tensor import Tensor, TensorSpec
from fd_core.api.verdict import Verdict


@dataclass(frozen=True, slots=True)
class LinearSpec:
    """y[M, out] = x[M, in] @ W[out, in]^T + b[out]. `dtype` is the checkpoint's, `activation` that
    of x and y. `prefix` is the checkpoint name, for messages and per-layer choices."""

    in_features: int
    out_features: int
    bias: bool
    dtype: DType
    activation: DType
    prefix: str = ""


class QuantMethod(ABC):
    """Built once per model and device: `Method(device, platform, ops, config)`."""

    name: ClassVar[str]
    priority: ClassVar[int] = 0

    def __init__(
        self, device: DeviceInfo, platform: Any, ops: Any, config: Mapping[str, Any] | None = None
    ) -> None:
        self.device = device
        self.platform = platform
        self.ops = ops
        self.config = dict(config or {})

    @classmethod
    @abstractmethod
    def supports(cls, spec: LinearSpec, device: DeviceInfo) -> Verdict:
        """Whether this method can run `spec` on `device`."""

    @abstractmethod
    def create_weights(self, spec: LinearSpec) -> dict[str, TensorSpec]:
        """Host tensors that the loader must provide, by parameter name (`weight` [out, in], ...)."""

    @abstractmethod
    def process_weights(self, spec: LinearSpec, weights: Mapping[str, Tensor]) -> Any:
        """Pack the host tensors into the device's layout, once. The inputs may be freed after."""

    @abstractmethod
    def apply(self, x: Tensor, packed: Any, bias: Tensor | None, out: Tensor) -> None:
        """out [M, out_features] = x [M, in_features] @ W^T + bias; allocates nothing."""
