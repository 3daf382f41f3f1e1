"""Weights as they are, and integer ones made on the device from a checkpoint's floats while it loads.

`wint8`: one scale per output; `wint4`: one per group of inputs and output (option `group_size`: 64 or 128),
or per output (-1), with `zero_point` an integer zero point beside each; activations stay 16-bit floats.
`w8a8`: as `wint8`, and each token's activations become int8 with a scale of their own; products are summed
exactly. Layouts: csrc/include/fd/packed_weights.cuh, packed_zero.cuh. Checkpoints that hold codes (`fd
quantize`, and public ones) are packed while they load.
Routers stay as they are, as do experts with `w8a8`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from fd_core.api import dtype as dt
from fd_core.api.device import DeviceInfo
from fd_core.api.dtype import FLOATS, DType
from fd_core.api.quant import ExpertMethod, Fusion, Grid, LinearSpec, QuantMethod
from fd_core.api.tensor import Tensor, TensorSpec
from fd_core.api.verdict import YES, ReasonCode, Verdict
from fd_core.quantization.config import QuantError
from fd_core.quantization.formats import FORMATS
from fd_core.quantization.unquantized import Unquantized
from fd_cuda import library
from fd_cuda.quant_experts import PackedExperts
from fd_cuda.quant_given import find_steps, pack_given, scale_pairs, step_bytes, step_spec

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
#: Of zero points.
ZEROS = (-128, 127)
Array = np.ndarray[Any, Any]


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


#: Up to these rows of x one kernel takes norm, gate and addition along (skinny.cuh).
FUSED_ROWS = 8


def takes_along(x: Tensor, out: Tensor, fusion: Fusion) -> bool:
    """Whether the fused kernels take what tensor cores multiply: 16-bit types in 16-byte units, and gates
    of whole tiles."""
    return x.dtype in HALVES and x.shape[1] % 8 == 0 and not (fusion.gated and out.shape[1] % TILE)


class FixedLinear(Unquantized):
    """Method "none": the `linear` op's kernels, which read weights while the kernel before them ends.

    Nothing is taken along: a stream of 16-bit weights hides the small kernels between (a Llama-3-8B block
    takes 108 us so and took 111 us fused, H200).
    """

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
    has_lookup: ClassVar[bool] = True
    #: The export that makes codes of a weight that lies on a given grid, and the one that looks rows up.
    given_packer: ClassVar[str]
    lookup_kernel: str
    #: Whether `given_packer` takes zero points too.
    takes_zero: ClassVar[bool] = False
    #: The export that takes norm, gate and addition along; empty: none.
    fused_kernel: str = ""
    #: The export that runs experts; empty: none.
    expert_kernel: ClassVar[str] = ""
    #: Of what the number of inputs must be a multiple.
    multiple: ClassVar[int] = 8

    def __init__(
        self, device: DeviceInfo, platform: Any, ops: Any, config: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(device, platform, ops, config)
        if self.config.get("is_quantized"):
            forms = self.config.get("forms", {})
            have = forms.get(self.name) if isinstance(forms, Mapping) else forms
            fix = "convert the 16-bit checkpoint with fd quantize, or load it with this method"
            raise QuantError(
                f"quantization {self.name!r}: want weights stored in one of {', '.join(FORMATS)} (forms), "
                f"or plain ones (is_quantized false), have {have!r}; fix: {fix}"
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
        if "scale" in weights:
            return pack_given(self, weights)
        plain = self.platform.empty(weights["weight"].spec)
        plain.copy_from(weights["weight"])
        packed = tuple(map(self.platform.empty, self.packed_specs(*plain.shape)))
        library.function(self.packer)(plain, *packed)
        return packed

    def experts(self) -> ExpertMethod | None:
        return PackedExperts(self, self.expert_kernel) if self.expert_kernel else None

    def grid(self) -> Grid:
        return Grid(-128, 127, 0, by_effect=False)

    def arranged(self, windows: int, scale: Array, zero: Array | None = None) -> Array:
        """Given scales and zero points [columns, groups], as the second of `packed_specs`; `windows`: of a
        row's codes."""
        return np.ascontiguousarray(scale[:, 0])

    def lookup(self, ids: Tensor, packed: Any, out: Tensor) -> None:
        library.function(self.lookup_kernel)(ids, *packed, out)

    @abstractmethod
    def packed_specs(self, columns: int, depth: int) -> tuple[TensorSpec, TensorSpec]:
        """Those of the codes and the scales of a weight [columns, depth]."""

    def apply(self, x: Tensor, packed: Any, bias: Tensor | None, out: Tensor) -> None:
        codes, scales = packed
        self._linear(x, codes, scales, bias, out)

    def apply_fused(self, x: Tensor, packed: Any, bias: Tensor | None, out: Tensor, fusion: Fusion) -> bool:
        if not (self.fused_kernel and takes_along(x, out, fusion)):
            return False
        fused = library.function(self.fused_kernel)
        fused(x, *packed, bias, fusion.norm, fusion.eps, fusion.gated, fusion.add, out)
        return True


class Int8Linear(IntegerLinear):
    """Method "wint8"."""

    name: ClassVar[str] = "wint8"
    kernel: ClassVar[str] = "linear_int8"
    fused_kernel: str = "linear_int8_fused"
    fused_rows: ClassVar[int] = FUSED_ROWS
    packer: ClassVar[str] = "pack_int8_weight"
    given_packer: ClassVar[str] = "pack_int8_given"
    lookup_kernel: str = "lookup_int8"
    expert_kernel: ClassVar[str] = "moe_expert_int8"

    def packed_specs(self, columns: int, depth: int) -> tuple[TensorSpec, TensorSpec]:
        return int8_spec(columns, depth), TensorSpec((columns,), dt.float32)


class Int4Linear(IntegerLinear):
    """Method "wint4"."""

    name: ClassVar[str] = "wint4"
    kernel: ClassVar[str] = "linear_int4"
    fused_kernel: str = "linear_int4_fused"
    fused_rows: ClassVar[int] = FUSED_ROWS
    packer: ClassVar[str] = "pack_int4_weight"
    given_packer: ClassVar[str] = "pack_int4_given"
    lookup_kernel: str = "lookup_int4"
    takes_zero: ClassVar[bool] = True
    expert_kernel: ClassVar[str] = "moe_expert_int4"

    def __init__(
        self, device: DeviceInfo, platform: Any, ops: Any, config: Mapping[str, Any] | None = None
    ) -> None:
        self.group = (config or {}).get("group_size", DEFAULT_GROUP)
        if type(self.group) is not int or self.group not in GROUPS:
            raise QuantError(
                f"quantization {self.name!r}: want group_size {' | '.join(map(str, GROUPS))}, "
                f"have {self.group!r}; fix: convert the 16-bit checkpoint with one of them"
            )
        self.zero_point = (config or {}).get("zero_point", False)
        if type(self.zero_point) is not bool:
            raise QuantError(
                f"quantization {self.name!r}: want zero_point true | false, have {self.zero_point!r}"
            )
        super().__init__(device, platform, ops, config)
        if self.zero_point:
            self._linear = library.function("linear_int4_zero")
            self.fused_kernel, self.lookup_kernel = "linear_int4_zero_fused", "lookup_int4_zero"

    def grid(self) -> Grid:
        return Grid(-8, 7, 0 if self.group == WHOLE else self.group, ZEROS if self.zero_point else None)

    def process_weights(self, spec: LinearSpec, weights: Mapping[str, Tensor]) -> Any:
        if self.zero_point and "scale" not in weights:
            weights = find_steps(self, weights["weight"], self.grid().group)
        return super().process_weights(spec, weights)

    def arranged(self, windows: int, scale: Array, zero: Array | None = None) -> Array:
        if self.zero_point:
            return step_bytes(scale, np.zeros_like(scale) if zero is None else zero, windows)
        if self.group == WHOLE:
            return super().arranged(windows, scale)
        return scale_pairs(scale, windows)

    def experts(self) -> ExpertMethod | None:
        return None if self.zero_point else super().experts()

    def packed_specs(self, columns: int, depth: int) -> tuple[TensorSpec, TensorSpec]:
        codes = int4_spec(columns, depth, self.group)
        if self.zero_point:
            return codes, step_spec(columns, codes.shape[1])
        return codes, int4_scale_spec(columns, depth, self.group)


class Int8DynamicLinear(IntegerLinear):
    """Method "w8a8"."""

    name: ClassVar[str] = "w8a8"
    kernel: ClassVar[str] = "linear_int8_dynamic"
    packer: ClassVar[str] = "pack_int8_rows"
    given_packer: ClassVar[str] = "pack_rows_given"
    lookup_kernel: str = "lookup_int8_rows"
    multiple: ClassVar[int] = 16

    def packed_specs(self, columns: int, depth: int) -> tuple[TensorSpec, TensorSpec]:
        return TensorSpec((columns, depth), dt.int8), TensorSpec((columns,), dt.float32)


#: Those that pack integers, and all.
INTEGERS: tuple[type[IntegerLinear], ...] = (Int8Linear, Int4Linear, Int8DynamicLinear)
METHODS: tuple[type[QuantMethod], ...] = (FixedLinear, *INTEGERS)
