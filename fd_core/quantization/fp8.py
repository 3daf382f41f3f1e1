"""Float8 weights and activations over the ops of the catalogue, on any device that has both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from fd_core.api import dtype as dt
from fd_core.api.device import DeviceInfo
from fd_core.api.dtype import FLOATS, DType
from fd_core.api.quant import LinearSpec, QuantMethod
from fd_core.api.tensor import Tensor, TensorSpec, from_numpy
from fd_core.api.verdict import Reason, ReasonCode, Verdict
from fd_core.quantization.config import QuantError

#: What `cutlass_scaled_mm` writes, and of what both sizes of a weight are multiples there.
HALVES = (dt.bfloat16, dt.float16)
UNIT = 16


class Float8Linear(QuantMethod):
    """Method "wfp8afp8": e4m3 weights with a scale per output, e4m3 activations with one per token.

    A scale is the largest magnitude / 448 (ops dynamic_per_token_scaled_fp8_quant, cutlass_scaled_mm).
    Three kinds of checkpoints: plain weights, rounded while they load; those of `fd quantize` (`form`);
    with `is_quantized` and no `forms`, `weight` e4m3 [out, in] and `weight_scale` [out, 1] of any float
    type for every matrix, as compressed-tensors stores them. Source: specification ops-quant-moe §10;
    the original keeps scales above 1e-4 / 448, here outputs of smaller weights keep theirs.
    """

    name: ClassVar[str] = "wfp8afp8"
    priority: ClassVar[int] = 0
    form: ClassVar[str] = "e4m3-rows-1"

    def __init__(
        self, device: DeviceInfo, platform: Any, ops: Any, config: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(device, platform, ops, config)
        have = self.config.get("forms", {}).get(self.name, self.form)
        if self.config.get("is_quantized") and have != self.form:
            raise QuantError(
                f"quantization {self.name!r}: want weights stored as {self.form!r} (forms), have {have!r}; "
                "fix: convert the 16-bit checkpoint with fd quantize, or load it with this method"
            )
        self.stored = self.stored and "forms" in self.config
        self._held: dict[str, Tensor] = {}

    @classmethod
    def supports(cls, spec: LinearSpec, device: DeviceInfo) -> Verdict:
        """16-bit activations, both sizes of the weight multiples of 16."""
        subject = f"quantisation {cls.name}: {spec.prefix}"
        halves, floats = (" | ".join(map(str, types)) for types in (HALVES, FLOATS))
        plain = "load a checkpoint of plain weights"
        other = "run the model in a 16-bit type, or, where the device computes in float32, use w8a8"
        weight = Reason(ReasonCode.DTYPE, f"{subject}.weight", floats, str(spec.dtype), plain)
        x = Reason(ReasonCode.DTYPE, f"{subject}: activations", halves, str(spec.activation), other)
        demands = [(spec.dtype in FLOATS, weight), (spec.activation in HALVES, x)]
        for what, size in (("inputs", spec.in_features), ("outputs", spec.out_features)):
            want, fix = f"a multiple of {UNIT}", "name the layer under skip"
            reason = Reason(ReasonCode.SHAPE, f"{subject}: {what}", want, str(size), fix)
            demands.append((size % UNIT == 0, reason))
        return Verdict(tuple(reason for fits, reason in demands if not fits))

    def create_weights(self, spec: LinearSpec) -> dict[str, TensorSpec]:
        shape = (spec.out_features, spec.in_features)
        if not self.config.get("is_quantized"):
            return {"weight": TensorSpec(shape, spec.dtype)}
        scales = TensorSpec((spec.out_features, 1), dt.float32)
        return {"weight": TensorSpec(shape, dt.float8_e4m3fn), "weight_scale": scales}

    def process_weights(self, spec: LinearSpec, weights: Mapping[str, Tensor]) -> Any:
        """(codes [out, in], scales [out]) on the device."""
        held = self._copied(weights["weight"])
        if "weight_scale" in weights:
            return held, self._copied(weights["weight_scale"]).view(-1)
        codes, scales = map(self.platform.empty, self.stored_weights(spec).values())
        self.ops.dynamic_per_token_scaled_fp8_quant(codes, held, scales, 0.0)
        return codes, scales

    def _copied(self, source: Tensor) -> Tensor:
        made: Tensor = self.platform.empty(source.spec)
        made.copy_from(source)
        return made

    def stored_weights(self, spec: LinearSpec) -> dict[str, TensorSpec]:
        return {
            "qweight": TensorSpec((spec.out_features, spec.in_features), dt.float8_e4m3fn),
            "scale": TensorSpec((spec.out_features,), dt.float32),
        }

    def store(self, spec: LinearSpec, packed: Any) -> dict[str, Tensor]:
        names = self.stored_weights(spec)
        return {n: from_numpy(self.platform.to_host(t)) for n, t in zip(names, packed, strict=True)}

    def adopt(self, spec: LinearSpec, stored: Mapping[str, Tensor]) -> Any:
        return self._copied(stored["qweight"]), self._copied(stored["scale"])

    def apply(self, x: Tensor, packed: Any, bias: Tensor | None, out: Tensor) -> None:
        codes, scales = packed
        tokens = self._space("codes", x.numel, dt.float8_e4m3fn).view(*x.shape)
        steps = self._space("scales", x.shape[0], dt.float32)
        self.ops.dynamic_per_token_scaled_fp8_quant(tokens, x, steps, 0.0)
        self.ops.cutlass_scaled_mm(out, tokens, codes, steps, scales, bias)

    def _space(self, name: str, count: int, dtype: DType) -> Tensor:
        """Scratch of a step, as much as the largest one so far needed."""
        held = self._held.get(name)
        if held is None or held.numel < count:
            held = self._held[name] = self.platform.empty(TensorSpec((count,), dtype))
        return held.slice(0, count)
