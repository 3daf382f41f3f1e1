"""Linear layers over Paddle: plain weights, and weight-only int8 and int4.

Codes are made while the checkpoint loads. Where the build has `weight_only_linear` for the place and the
activations' type, Paddle packs and multiplies; otherwise codes are widened and multiplied, which saves
memory and costs time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fd_core.api.device import DeviceInfo
from fd_core.api.dtype import FLOATS
from fd_core.api.quant import LinearSpec, QuantMethod
from fd_core.api.tensor import Tensor, TensorSpec
from fd_core.api.verdict import YES, ReasonCode, Verdict
from fd_core.quantization.config import QuantError
from fd_xpu.memory import as_paddle

Array = np.ndarray[Any, Any]
GROUPS = (32, 64, 128)
DEFAULT_GROUP = 64


class PaddleLinear(QuantMethod):
    """Method "none": weights in the activations' type, converted once."""

    name: ClassVar[str] = "none"
    priority: ClassVar[int] = 100

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

    def process_weights(self, spec: LinearSpec, weights: Mapping[str, Tensor]) -> Any:
        wide = weights["weight"].numpy().astype(spec.activation.numpy())
        return self.platform.from_host(wide)

    def apply(self, x: Tensor, packed: Any, bias: Tensor | None, out: Tensor) -> None:
        from fd_xpu.compute import matmul

        finish(matmul(as_paddle(x), as_paddle(packed), transpose_y=True), bias, out)


@dataclass(frozen=True, slots=True)
class Codes:
    """`codes` int8 [out, in], or uint8 [out, in / 2] with two int4 codes each; `scales` float32 [out,
    groups]. `fused`: both are as Paddle's weight_only_linear wants them."""

    codes: Tensor
    scales: Tensor
    fused: bool = False


class WeightOnly(PaddleLinear):
    """What the integer methods share: they start from plain weights, and activations stay as they are."""

    kind: ClassVar[str]

    def __init__(
        self, device: DeviceInfo, platform: Any, ops: Any, config: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(device, platform, ops, config)
        if self.config.get("is_quantized"):
            raise QuantError(
                f"quantization {self.name!r}: want a checkpoint of plain weights (is_quantized false), "
                "have one that is already quantised; fix: load the 16-bit checkpoint with this method"
            )

    def process_weights(self, spec: LinearSpec, weights: Mapping[str, Tensor]) -> Codes:
        weight = weights["weight"].numpy().astype(np.float32)
        packed = self._pack_fused(spec, weight)
        return packed if packed is not None else self._pack(weight)

    def _pack(self, weight: Array) -> Codes:
        raise NotImplementedError

    def _pack_fused(self, spec: LinearSpec, weight: Array) -> Codes | None:
        """Paddle's own packing; None where the build multiplies nothing of this type."""
        from fd_xpu import fused
        from fd_xpu.framework import paddle
        from fd_xpu.memory import from_paddle

        example = paddle.empty([1], spec.activation.name)
        if not (fused.has("weight_only_linear", example) and fused.has("weight_quantize", example)):
            return None
        plain = paddle.to_tensor(np.ascontiguousarray(weight.T)).astype(spec.activation.name)
        made = paddle.nn.quant.weight_quantize(
            plain, f"weight_only_{self.kind}", group_size=self.fused_group
        )
        codes, scales = (from_paddle(t, self.platform.device, self.platform) for t in made)
        return Codes(codes, scales, fused=True)

    @property
    def fused_group(self) -> int:
        return -1

    def apply(self, x: Tensor, packed: Codes, bias: Tensor | None, out: Tensor) -> None:
        rows = as_paddle(x)
        if packed.fused:
            finish(self._fused(rows, packed), bias, out)
        else:
            finish(self._composed(rows, as_paddle(packed.codes), as_paddle(packed.scales)), bias, out)

    def _fused(self, x: Any, packed: Codes) -> Any:
        from fd_xpu.framework import paddle

        return paddle.nn.quant.weight_only_linear(
            x,
            as_paddle(packed.codes),
            weight_scale=as_paddle(packed.scales),
            weight_dtype=self.kind,
            group_size=self.fused_group,
        )

    def _composed(self, x: Any, codes: Any, scales: Any) -> Any:
        raise NotImplementedError


class Int8Linear(WeightOnly):
    """Method "wint8": int8 weights, one scale per output."""

    name: ClassVar[str] = "wint8"
    kind: ClassVar[str] = "int8"

    def _pack(self, weight: Array) -> Codes:
        """A row's largest magnitude becomes 127."""
        codes, scales = quantised(weight, 127)
        return Codes(self.platform.from_host(codes), self.platform.from_host(scales))

    def _composed(self, x: Any, codes: Any, scales: Any) -> Any:
        """Codes are exact in every float type, so the scales may follow the product."""
        from fd_xpu.compute import f32, matmul

        return f32(matmul(x, codes.astype(x.dtype), transpose_y=True)) * scales.reshape([1, -1])


class Int4Linear(WeightOnly):
    """Method "wint4": int4 weights, one scale per group of inputs and output (`group_size`)."""

    name: ClassVar[str] = "wint4"
    kind: ClassVar[str] = "int4"

    def __init__(
        self, device: DeviceInfo, platform: Any, ops: Any, config: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(device, platform, ops, config)
        self.group = self.config.get("group_size", DEFAULT_GROUP)
        if type(self.group) is not int or self.group not in GROUPS:
            want = " | ".join(map(str, GROUPS))
            raise QuantError(f"quantization {self.name!r}: want group_size {want}, have {self.group!r}")

    @property
    def fused_group(self) -> int:
        return int(self.group)

    def _pack_fused(self, spec: LinearSpec, weight: Array) -> Codes | None:
        """Paddle has groups of 64 and 128."""
        return super()._pack_fused(spec, weight) if self.group != 32 else None

    def _pack(self, weight: Array) -> Codes:
        """[out, groups, group] int4 codes, stored as code + 8, the lower input first."""
        columns, depth = weight.shape
        padded = np.pad(weight, ((0, 0), (0, -depth % self.group)))
        codes, scales = closest(padded.reshape(-1, self.group))
        pairs = (codes.reshape(columns, -1) + 8).astype(np.uint8)
        stored = pairs[:, 0::2] | pairs[:, 1::2] << 4
        return Codes(self.platform.from_host(stored), self.platform.from_host(scales.reshape(columns, -1)))

    def _composed(self, x: Any, codes: Any, scales: Any) -> Any:
        """Widened with a floor and a difference: not every place has integer shifts."""
        from fd_xpu.compute import f32, matmul
        from fd_xpu.framework import paddle

        pairs = f32(codes)
        high = paddle.floor(pairs / 16.0)
        values = paddle.stack([pairs - 16.0 * high, high], -1).reshape([*scales.shape, self.group]) - 8.0
        weight = (values * scales.unsqueeze(-1)).reshape([scales.shape[0], -1])[:, : x.shape[1]]
        return matmul(x, weight, transpose_y=True)


def quantised(weight: Array, limit: int) -> tuple[Array, Array]:
    """(codes int8, scales float32 [rows]): nearest multiples of each row's absmax / limit."""
    scales = (np.abs(weight).max(axis=1, initial=0) / np.float32(limit)).astype(np.float32)
    return nearest(weight, scales, -limit, limit).astype(np.int8), scales


#: Shares of the scale that puts the largest weight of a group at -8 which are tried: to clip it may cost
#: less than a coarse step.
SHARES = (8 / 7, 1.1, 1.05, 1.0, 0.95, 0.9, 0.85, 0.8, 0.75)


def closest(weight: Array) -> tuple[Array, Array]:
    """(codes -8 .. 7, scales float32 [rows], of either sign): the scale of SHARES that leaves each row the
    least squared error. All sixteen codes are used: the largest weight, of whatever sign, lies at -8."""
    extreme = np.take_along_axis(weight, np.abs(weight).argmax(axis=1)[:, None], 1)[:, 0]
    best, least = np.zeros_like(extreme), np.full(len(weight), np.inf, np.float32)
    for share in SHARES:
        scale = (extreme * np.float32(share / -8)).astype(np.float32)
        error = np.square(weight - nearest(weight, scale, -8, 7) * scale[:, None]).sum(axis=1)
        better = error < least
        best, least = np.where(better, scale, best), np.where(better, error, least)
    return nearest(weight, best, -8, 7).astype(np.int8), best


def nearest(weight: Array, scale: Array, low: int, high: int) -> Array:
    """Codes in float32."""
    safe = np.where(scale == 0, np.float32(1), scale)
    return np.rint(weight / safe[:, None]).clip(low, high)


def finish(total: Any, bias: Tensor | None, out: Tensor) -> None:
    """The bias in float32, then one rounding into `out`."""
    from fd_xpu.call import rounded
    from fd_xpu.compute import f32

    target = as_paddle(out)
    if target.size:
        whole = total if bias is None else f32(total) + f32(as_paddle(bias))
        target.copy_(rounded(whole, target.dtype), False)


METHODS: tuple[type[QuantMethod], ...] = (PaddleLinear, Int8Linear, Int4Linear)
