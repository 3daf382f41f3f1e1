"""Integer weights, made from a checkpoint's floats while it loads, or stored (`fd quantize`) and used in
place. Layouts: csrc/include/fd/quant_panels.h, the same for every processor.

`wint8`, `w8a8`: one scale per output column. `wint4`, `w4a8`: one per group of inputs and column
(option `group_size`: 32, 64, 128, or -1 for one per column), with `zero_point` also an integer zero
point: a weight is (code - zero point) * scale. The `a8` methods also quantise each
token's activations to int8, with a scale per group of inputs (128 with int8 weights), and sum a group
in int32; the others keep float32 activations. Experts of mixture layers are stacks of the same panels,
routers stay as they are. The output head is a linear layer like the others (`skip` spares it), and where
it is the embedding table, tokens are looked up in its panels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from fd_core.api import dtype as dt
from fd_core.api.device import DeviceInfo
from fd_core.api.dtype import FLOATS
from fd_core.api.quant import ExpertMethod, Grid, LinearSpec, QuantMethod
from fd_core.api.tensor import Tensor, TensorSpec
from fd_core.api.verdict import YES, ReasonCode, Verdict
from fd_core.quantization.codes import rounded_codes
from fd_core.quantization.config import QuantError
from fd_core.quantization.panels import Int8Panels
from fd_cpu import library
from fd_cpu.experts import IntegerExperts
from fd_cpu.quant import PANEL

QUAD = 4  # steps of k that lie together
GROUPS = (32, 64, 128)
WHOLE = -1  # one scale per column: stored in groups of 128 that all have it
DEFAULT_GROUP = 64
LOW, HIGH = -8, 7
ZEROS = (-128, 127)  # of zero points
INT8 = Grid(-128, 127, 0, by_effect=False)


def int8_spec(weight: TensorSpec) -> TensorSpec:
    """The panels of a weight [N, K]: [ceil(N / 32), ceil(K / 4), 32, 4]."""
    columns, depth = weight.shape
    return TensorSpec((-(-columns // PANEL), -(-depth // QUAD), PANEL, QUAD), dt.int8)


def int4_spec(weight: TensorSpec, group: int, zero_point: bool = False) -> TensorSpec:
    """The panels of a weight [N, K]: [ceil(N / 32), ceil(K / group), bytes of a group], which are those of
    scales, zero points (if any) and codes."""
    columns, depth = weight.shape
    nbytes = 2 * PANEL + zero_point * PANEL + group * PANEL // 2
    return TensorSpec((-(-columns // PANEL), -(-depth // group), nbytes), dt.uint8)


def plain(spec: LinearSpec) -> TensorSpec:
    return TensorSpec((spec.out_features, spec.in_features), spec.dtype)


class IntegerLinear(QuantMethod):
    """What the methods share: they start from plain weights, or from their own panels."""

    priority: ClassVar[int] = 100
    has_lookup: ClassVar[bool] = True
    #: The export for the experts of mixture layers.
    expert_kernel: ClassVar[str]

    def __init__(
        self, device: DeviceInfo, platform: Any, ops: Any, config: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(device, platform, ops, config)
        forms = self.config.get("forms", {})
        have = forms.get(self.name) if isinstance(forms, Mapping) else forms
        if self.config.get("is_quantized") and have != self.form:
            fix = "convert the 16-bit checkpoint with fd quantize, or load it with this method"
            raise QuantError(
                f"quantization {self.name!r}: want weights stored as {self.form!r} (forms), or plain ones "
                f"(is_quantized false), have {have!r}; fix: {fix}"
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
        return {"weight": plain(spec)}

    def experts(self) -> ExpertMethod | None:
        return IntegerExperts(self, self.expert_kernel)


class Int8Linear(IntegerLinear):
    """Method "wint8": int8 weights, float activations."""

    name: ClassVar[str] = "wint8"
    form: ClassVar[str] = "int8-panels-1"
    kernel: ClassVar[str] = "linear_int8"
    expert_kernel: ClassVar[str] = "experts_int8"

    def __init__(
        self, device: DeviceInfo, platform: Any, ops: Any, config: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(device, platform, ops, config)
        self._linear = getattr(library, self.kernel)
        self._lookup = library.lookup_int8

    def grid(self) -> Grid:
        return INT8

    def process_weights(self, spec: LinearSpec, weights: Mapping[str, Tensor]) -> Any:
        """(panels, scales): a row's largest magnitude becomes 127, where no scale is given."""
        if "scale" in weights:
            codes = rounded_codes(weights["weight"].numpy(), weights["scale"].numpy(), None, INT8)
            return tuple(map(self.platform.from_host, Int8Panels(INT8).encode(codes).values()))
        packed, scale = (self.platform.empty(one) for one in self.stored_weights(spec).values())
        library.pack_int8_weight(weights["weight"], packed, scale)
        return packed, scale

    def stored_weights(self, spec: LinearSpec) -> dict[str, TensorSpec]:
        return {"qweight": int8_spec(plain(spec)), "scale": TensorSpec((spec.out_features,), dt.float32)}

    def store(self, spec: LinearSpec, packed: Any) -> dict[str, Tensor]:
        return dict(zip(("qweight", "scale"), packed, strict=True))

    def adopt(self, spec: LinearSpec, stored: Mapping[str, Tensor]) -> Any:
        return stored["qweight"], stored["scale"]

    def apply(self, x: Tensor, packed: Any, bias: Tensor | None, out: Tensor) -> None:
        panels, scale = packed
        self._linear(x, panels, scale, bias, out)

    def lookup(self, ids: Tensor, packed: Any, out: Tensor) -> None:
        self._lookup(ids, *packed, out)


class Int4Linear(IntegerLinear):
    """Method "wint4": int4 weights in groups, float activations."""

    name: ClassVar[str] = "wint4"
    kernel: ClassVar[str] = "linear_int4"
    expert_kernel: ClassVar[str] = "experts_int4"

    def __init__(
        self, device: DeviceInfo, platform: Any, ops: Any, config: Mapping[str, Any] | None = None
    ) -> None:
        self.zero_point = (config or {}).get("zero_point", False)
        if type(self.zero_point) is not bool:
            raise QuantError(
                f"quantization {self.name!r}: want zero_point true | false, have {self.zero_point!r}"
            )
        super().__init__(device, platform, ops, config)
        group = self.config.get("group_size", DEFAULT_GROUP)
        if type(group) is not int or group not in (*GROUPS, WHOLE):
            raise QuantError(
                f"quantization {self.name!r}: want group_size {' | '.join(map(str, GROUPS))} | {WHOLE}, "
                f"have {group!r}"
            )
        self.whole = group == WHOLE
        self.group = GROUPS[-1] if self.whole else group
        self._linear = getattr(library, self.kernel)
        self._lookup = library.lookup_int4

    @property
    def form(self) -> str:  # type: ignore[override]
        return "int4-zero-panels-1" if self.zero_point else "int4-panels-1"

    def grid(self) -> Grid:
        return Grid(LOW, HIGH, 0 if self.whole else self.group, ZEROS if self.zero_point else None)

    def process_weights(self, spec: LinearSpec, weights: Mapping[str, Tensor]) -> Any:
        """The panels, scales among the codes; those of the least squared error where none are given."""
        packed = self.platform.empty(self._packed_spec(spec))
        given = weights.get("scale"), weights.get("zero")
        library.pack_int4_weight(weights["weight"], *given, self.whole, packed)
        return packed

    def stored_weights(self, spec: LinearSpec) -> dict[str, TensorSpec]:
        return {"qweight": self._packed_spec(spec)}

    def _packed_spec(self, spec: LinearSpec) -> TensorSpec:
        return int4_spec(plain(spec), self.group, self.zero_point)

    def store(self, spec: LinearSpec, packed: Any) -> dict[str, Tensor]:
        return {"qweight": packed}

    def adopt(self, spec: LinearSpec, stored: Mapping[str, Tensor]) -> Any:
        return stored["qweight"]

    def apply(self, x: Tensor, packed: Any, bias: Tensor | None, out: Tensor) -> None:
        self._linear(x, packed, bias, out)

    def lookup(self, ids: Tensor, packed: Any, out: Tensor) -> None:
        self._lookup(ids, packed, out)


class Int8DynamicLinear(Int8Linear):
    """Method "w8a8": int8 weights, activations quantised to int8 token by token."""

    name: ClassVar[str] = "w8a8"
    kernel: ClassVar[str] = "linear_int8_dynamic"
    expert_kernel: ClassVar[str] = "experts_int8_dynamic"


class Int4DynamicLinear(Int4Linear):
    """Method "w4a8": int4 weights in groups, activations quantised to int8 token by token."""

    name: ClassVar[str] = "w4a8"
    kernel: ClassVar[str] = "linear_int4_dynamic"
    expert_kernel: ClassVar[str] = "experts_int4_dynamic"


METHODS: tuple[type[QuantMethod], ...] = (
    Int8Linear,
    Int4Linear,
    Int8DynamicLinear,
    Int4DynamicLinear,
)
