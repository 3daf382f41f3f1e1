"""Integer weights, made from a checkpoint's floats while it loads. Layouts: csrc/include/fd/quant_panels.h.

`wint8`, `w8a8`: one scale per output column. `wint4`, `w4a8`: one per group of inputs and column
(option `group_size`: 32, 64 or 128). The `a8` methods also quantise each token's activations to int8,
with a scale per group of inputs (128 with int8 weights), and sum a group in int32; the others keep
float32 activations. Embedding tables that are looked up, routers and experts stay as they are; the
output head is a linear layer like the others (`skip` spares it).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from fd_core.api import dtype as dt
from fd_core.api.device import DeviceInfo
from fd_core.api.dtype import FLOATS
from fd_core.api.quant import LinearSpec, QuantMethod
from fd_core.api.tensor import Tensor, TensorSpec
from fd_core.api.verdict import YES, ReasonCode, Verdict
from fd_core.quantization.config import QuantError
from fd_cpu import library
from fd_cpu.quant import PANEL

QUAD = 4  # steps of k that lie together
GROUPS = (32, 64, 128)
DEFAULT_GROUP = 64


def int8_spec(weight: TensorSpec) -> TensorSpec:
    """The panels of a weight [N, K]: [ceil(N / 32), ceil(K / 4), 32, 4]."""
    columns, depth = weight.shape
    return TensorSpec((-(-columns // PANEL), -(-depth // QUAD), PANEL, QUAD), dt.int8)


def int4_spec(weight: TensorSpec, group: int) -> TensorSpec:
    """The panels of a weight [N, K]: [ceil(N / 32), ceil(K / group), scales and codes of a group]."""
    columns, depth = weight.shape
    return TensorSpec((-(-columns // PANEL), -(-depth // group), 2 * PANEL + group * PANEL // 2), dt.uint8)


class IntegerLinear(QuantMethod):
    """What the methods share: they start from plain weights."""

    priority: ClassVar[int] = 100

    def __init__(
        self, device: DeviceInfo, platform: Any, ops: Any, config: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(device, platform, ops, config)
        if self.config.get("is_quantized"):
            fix = "load the 16-bit checkpoint with this method instead"
            raise QuantError(
                f"quantization {self.name!r}: want a checkpoint of plain weights (is_quantized false), "
                f"have one that is already quantised; fix: {fix}"
            )

    @classmethod
    def supports(cls, spec: LinearSpec, device: DeviceInfo) -> Verdict:
        """Any floating-point weights."""
        if spec.dtype in FLOATS:
            return YES
        want, fix = " | ".join(map(str, FLOATS)), "load a checkpoint of plain weights"
        subject = f"quantisation {cls.name}: {spec.prefix}.weight"
        return Verdict.no(ReasonCode.DTYPE, subject, want, spec.dtype, fix)

    def create_weights(self, spec: LinearSpec) -> dict[str, TensorSpec]:
        return {"weight": TensorSpec((spec.out_features, spec.in_features), spec.dtype)}


class Int8Linear(IntegerLinear):
    """Method "wint8": int8 weights, float activations."""

    name: ClassVar[str] = "wint8"
    kernel: ClassVar[str] = "linear_int8"

    def __init__(
        self, device: DeviceInfo, platform: Any, ops: Any, config: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(device, platform, ops, config)
        self._linear = getattr(library, self.kernel)

    def process_weights(self, spec: LinearSpec, weights: Mapping[str, Tensor]) -> Any:
        """(panels, scales): a row's largest magnitude becomes 127."""
        weight = weights["weight"]
        packed = self.platform.empty(int8_spec(weight.spec))
        scale = self.platform.empty(TensorSpec((spec.out_features,), dt.float32))
        library.pack_int8_weight(weight, packed, scale)
        return packed, scale

    def apply(self, x: Tensor, packed: Any, bias: Tensor | None, out: Tensor) -> None:
        panels, scale = packed
        self._linear(x, panels, scale, bias, out)


class Int4Linear(IntegerLinear):
    """Method "wint4": int4 weights in groups, float activations."""

    name: ClassVar[str] = "wint4"
    kernel: ClassVar[str] = "linear_int4"

    def __init__(
        self, device: DeviceInfo, platform: Any, ops: Any, config: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(device, platform, ops, config)
        self.group = self.config.get("group_size", DEFAULT_GROUP)
        if type(self.group) is not int or self.group not in GROUPS:
            raise QuantError(
                f"quantization {self.name!r}: want group_size {' | '.join(map(str, GROUPS))}, "
                f"have {self.group!r}"
            )
        self._linear = getattr(library, self.kernel)

    def process_weights(self, spec: LinearSpec, weights: Mapping[str, Tensor]) -> Any:
        """The panels, scales among the codes."""
        weight = weights["weight"]
        packed = self.platform.empty(int4_spec(weight.spec, self.group))
        library.pack_int4_weight(weight, packed)
        return packed

    def apply(self, x: Tensor, packed: Any, bias: Tensor | None, out: Tensor) -> None:
        self._linear(x, packed, bias, out)


class Int8DynamicLinear(Int8Linear):
    """Method "w8a8": int8 weights, activations quantised to int8 token by token."""

    name: ClassVar[str] = "w8a8"
    kernel: ClassVar[str] = "linear_int8_dynamic"


class Int4DynamicLinear(Int4Linear):
    """Method "w4a8": int4 weights in groups, activations quantised to int8 token by token."""

    name: ClassVar[str] = "w4a8"
    kernel: ClassVar[str] = "linear_int4_dynamic"


METHODS: tuple[type[QuantMethod], ...] = (
    Int8Linear,
    Int4Linear,
    Int8DynamicLinear,
    Int4DynamicLinear,
)
