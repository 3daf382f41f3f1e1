"""Weights as they are, and integer ones made on the device from a checkpoint's floats while it loads.

`wint8`: one scale per output; `wint4`: one per group of inputs and output (option `group_size`: 64 or 128),
or per output (-1); activations stay 16-bit floats. `w8a8`: as `wint8`, and each token's activations become
int8 with a scale of their own; products are summed exactly. Layouts: csrc/include/fd/packed_weights.cuh.
Embedding tables that are looked up, routers and experts stay as they are.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from fd_core.api import dtype as dt
from fd_core.api.device import DeviceInfo
from fd_core.api.dtype import FLOATS, DType
from fd_core.api.quant import LinearSpec, QuantMethod
from fd_core.api.tensor import Tensor, TensorSpec
from fd_core.api.verdict import YES, ReasonCode, Verdict
from fd_core.quantization.config import QuantError
from fd_core.quantization.unquantized import Unquantized
from fd_cuda import library

#: Rows of a weight that are packed together, and steps of k of a window (packed_weights.cuh): of int8
#: codes, of int4 codes with one scale per output. Of those in groups, a window is a group.
TILE, INT8_WINDOW, INT4_ROW_WINDOW = 16, 64, 128
#: All inputs of an output as one group.
WHOLE = -1
GROUPS = (64, 128, WHOLE)
DEFAULT_GROUP = 64
#: The first architecture whose tensor cores multiply what these methods make.
FIRST = 80
HALVES = (dt.bfloat16, dt.float16)


def int8_spec(columns: int, depth: int) -> TensorSpec:
    """The codes of a weight [columns, depth]."""
    return TensorSpec((-(-columns // TILE), -(-depth // INT8_WINDOW), TILE * INT8_WINDOW), dt.int8)


def int4_spec(columns: int, depth: int, group: int) -> TensorSpec:
    """The codes of a weight [columns, depth], two in a byte."""
    window = INT4_ROW_WINDOW if group == WHOLE else group
    return TensorSpec((-(-columns // TILE), -(-depth // window), TILE * window // 2), dt.uint8)


def int4_scale_spec(columns: int, depth: int, group: int) -> TensorSpec:
    if group == WHOLE:
        return TensorSpec((columns,), dt.float32)
    return TensorSpec((-(-columns // TILE), -(-depth // group), TILE), dt.bfloat16)


def _names(types: tuple[DType, ...]) -> str:
    return " | ".join(map(str, types))


def _want(fits: bool, code: ReasonCode, subject: str) -> Callable[[object, object, str], Verdict]:
    """The verdict of one demand, given what is wanted, what there is, and the fix."""
    return lambda want, have, fix: YES if fits else Verdict.no(code, subject, want, have, fix)


class FixedLinear(Unquantized):
    """Method "none": the `linear` op's kernels, which read weights while the kernel before them ends."""

    priority: ClassVar[int] = 100

    def __init__(
        self, device: DeviceInfo, platform: Any, ops: Any, config: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(device, platform, ops, config)
        self._linear = library.function("linear_fixed_weight")

    def apply(self, x: Tensor, packed: Any, bias: Tensor | None, out: Tensor) -> None:
        self._linear(x, packed, bias, out)


class IntegerLinear(QuantMethod):
    """What the methods share: they start from plain weights and need tensor cores."""

    priority: ClassVar[int] = 100
    #: The export that multiplies, and the one that makes codes and scales of a plain weight.
    kernel: ClassVar[str]
    packer: ClassVar[str]
    #: Of what the number of inputs must be a multiple.
    multiple: ClassVar[int] = 8

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
        self._linear = library.function(self.kernel)

    @classmethod
    def supports(cls, spec: LinearSpec, device: DeviceInfo) -> Verdict:
        """Floating-point weights, 16-bit activations, rows of whole 16-byte units, sm_80 or newer."""
        subject = f"quantisation {cls.name}: {spec.prefix}"
        arch = _want(device.arch_rank >= FIRST, ReasonCode.ARCH, f"quantisation {cls.name}")
        weight = _want(spec.dtype in FLOATS, ReasonCode.DTYPE, f"{subject}.weight")
        x = _want(spec.activation in HALVES, ReasonCode.DTYPE, f"{subject}: activations")
        width = _want(spec.in_features % cls.multiple == 0, ReasonCode.SHAPE, f"{subject}: inputs")
        return Verdict.all(
            (
                arch(f"sm_{FIRST} or newer", device.arch, "use quantization none"),
                weight(_names(FLOATS), spec.dtype, "load a checkpoint of plain weights"),
                x(_names(HALVES), spec.activation, "run the model in a 16-bit type"),
                width(f"a multiple of {cls.multiple}", spec.in_features, "name the layer under skip"),
            )
        )

    def create_weights(self, spec: LinearSpec) -> dict[str, TensorSpec]:
        return {"weight": TensorSpec((spec.out_features, spec.in_features), spec.dtype)}

    def process_weights(self, spec: LinearSpec, weights: Mapping[str, Tensor]) -> Any:
        """(codes, scales) in device memory."""
        plain = self.platform.empty(weights["weight"].spec)
        plain.copy_from(weights["weight"])
        packed = tuple(map(self.platform.empty, self.packed_specs(*plain.shape)))
        library.function(self.packer)(plain, *packed)
        return packed

    @abstractmethod
    def packed_specs(self, columns: int, depth: int) -> tuple[TensorSpec, TensorSpec]:
        """Those of the codes and the scales of a weight [columns, depth]."""

    def apply(self, x: Tensor, packed: Any, bias: Tensor | None, out: Tensor) -> None:
        codes, scales = packed
        self._linear(x, codes, scales, bias, out)


class Int8Linear(IntegerLinear):
    """Method "wint8"."""

    name: ClassVar[str] = "wint8"
    kernel: ClassVar[str] = "linear_int8"
    packer: ClassVar[str] = "pack_int8_weight"

    def packed_specs(self, columns: int, depth: int) -> tuple[TensorSpec, TensorSpec]:
        return int8_spec(columns, depth), TensorSpec((columns,), dt.float32)


class Int4Linear(IntegerLinear):
    """Method "wint4"."""

    name: ClassVar[str] = "wint4"
    kernel: ClassVar[str] = "linear_int4"
    packer: ClassVar[str] = "pack_int4_weight"

    def __init__(
        self, device: DeviceInfo, platform: Any, ops: Any, config: Mapping[str, Any] | None = None
    ) -> None:
        self.group = (config or {}).get("group_size", DEFAULT_GROUP)
        if type(self.group) is not int or self.group not in GROUPS:
            raise QuantError(
                f"quantization {self.name!r}: want group_size {' | '.join(map(str, GROUPS))}, "
                f"have {self.group!r}"
            )
        zero_point = (config or {}).get("zero_point", False)
        if zero_point is not False:
            fix = "leave zero_point out: codes are then symmetric"
            raise QuantError(
                f"quantization {self.name!r}: want zero_point false, have {zero_point!r}; fix: {fix}"
            )
        super().__init__(device, platform, ops, config)

    def packed_specs(self, columns: int, depth: int) -> tuple[TensorSpec, TensorSpec]:
        return int4_spec(columns, depth, self.group), int4_scale_spec(columns, depth, self.group)


class Int8DynamicLinear(IntegerLinear):
    """Method "w8a8"."""

    name: ClassVar[str] = "w8a8"
    kernel: ClassVar[str] = "linear_int8_dynamic"
    packer: ClassVar[str] = "pack_int8_rows"
    multiple: ClassVar[int] = 16

    def packed_specs(self, columns: int, depth: int) -> tuple[TensorSpec, TensorSpec]:
        return TensorSpec((columns, depth), dt.int8), TensorSpec((columns,), dt.float32)


#: Those that pack integers, and all.
INTEGERS: tuple[type[IntegerLinear], ...] = (Int8Linear, Int4Linear, Int8DynamicLinear)
METHODS: tuple[type[QuantMethod], ...] = (FixedLinear, *INTEGERS)
