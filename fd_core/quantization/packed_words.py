"""Integer weights as public checkpoints store them: codes side by side in int32 words, lowest bits first.

pack-quantized  compressed-tensors: `weight_packed` [out, in / 8], codes + 8 (int8: in / 4, + 128);
                `weight_scale` [out, groups]; `weight_zero_point` [out / 8, groups] likewise, down outputs
int-quantized   compressed-tensors: `weight` [out, in] int8, `weight_scale` [out, 1]
awq             `qweight` [in, out / 8] and `qzeros` [groups, out / 8], outputs in order 0 2 4 6 1 3 5 7;
                `scales` [groups, out]
gptq            `qweight` [in / 8, out], `qzeros` [groups, out / 8], from which 1 was taken (gptq_v2: not),
                `scales`; `g_idx` [in]: the group of each input

Sources: compressed-tensors' documentation of its formats; AutoAWQ's gemm layout; AutoGPTQ's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from fd_core.api import dtype as dt
from fd_core.api.tensor import TensorSpec
from fd_core.quantization.codes import CodeFormat, Codes
from fd_core.quantization.config import QuantError

Array = np.ndarray[Any, Any]
#: Which output of eight a word's nibbles hold, from the lowest on.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def unpacked(words: Array, bits: int) -> Array:
    """int32 [..., n] -> codes [..., n * 32 / bits] less half their range, int8."""
    lanes = np.ascontiguousarray(words).view(np.uint8)
    if bits == 4:
        lanes = np.stack([lanes & 15, lanes >> 4], -1).reshape(*lanes.shape[:-1], -1)
    half = np.uint8(1 << bits - 1)
    return np.asarray((lanes - half).view(np.int8))


class PackQuantized(CodeFormat):
    name: ClassVar[str] = "pack-quantized"

    @property
    def _bits(self) -> int:
        return (self.grid.high - self.grid.low).bit_length()

    def tensors(self, columns: int, depth: int) -> dict[str, TensorSpec]:
        each, groups = 32 // self._bits, self.groups(depth)
        found = {
            "weight_packed": TensorSpec((columns, -(-depth // each)), dt.int32),
            "weight_scale": TensorSpec((columns, groups), dt.float32),
            "weight_shape": TensorSpec((2,), dt.int64),
        }
        if self.grid.zeros:
            found["weight_zero_point"] = TensorSpec((-(-columns // each), groups), dt.int32)
        return found

    def decode(self, stored: Mapping[str, Array], columns: int, depth: int) -> Codes:
        shape = stored["weight_shape"].tolist()
        if shape != [columns, depth]:
            raise QuantError(f"{self.name}: want weight_shape {[columns, depth]}, have {shape}")
        code = unpacked(stored["weight_packed"], self._bits)[:, :depth]
        zero = None
        if self.grid.zeros:
            zero = unpacked(stored["weight_zero_point"].T, self._bits).T[:columns]
        return Codes(code, stored["weight_scale"], zero)


class IntQuantized(CodeFormat):
    name: ClassVar[str] = "int-quantized"

    def tensors(self, columns: int, depth: int) -> dict[str, TensorSpec]:
        scale = TensorSpec((columns, 1), dt.float32)
        return {"weight": TensorSpec((columns, depth), dt.int8), "weight_scale": scale}

    def decode(self, stored: Mapping[str, Array], columns: int, depth: int) -> Codes:
        return Codes(stored["weight"], stored["weight_scale"], None)


class _Zeroed(CodeFormat):
    """Zero points are always stored, also where all are the middle of the range."""

    def with_zeros(self, code: Array, scale: Array, zero: Array) -> Codes:
        if self.grid.zeros is None and zero.any():
            raise QuantError(f"{self.name}: want no zero points, as the configuration says, have some")
        return Codes(code, np.ascontiguousarray(scale), None if self.grid.zeros is None else zero)


class Awq(_Zeroed):
    name: ClassVar[str] = "awq"

    def tensors(self, columns: int, depth: int) -> dict[str, TensorSpec]:
        groups, words = self.groups(depth), -(-columns // 8)
        return {
            "qweight": TensorSpec((depth, words), dt.int32),
            "qzeros": TensorSpec((groups, words), dt.int32),
            "scales": TensorSpec((groups, columns), dt.float32),
        }

    def decode(self, stored: Mapping[str, Array], columns: int, depth: int) -> Codes:
        code, zero = (self._in_order(stored[name])[:, :columns].T for name in ("qweight", "qzeros"))
        return self.with_zeros(code, stored["scales"].T, zero)

    def _in_order(self, words: Array) -> Array:
        lanes = unpacked(words, 4).reshape(len(words), -1, 8)
        out = np.empty_like(lanes)
        out[..., AWQ_ORDER] = lanes
        return out.reshape(len(words), -1)


class Gptq(_Zeroed):
    name: ClassVar[str] = "gptq"
    #: What is added to stored zero points.
    off: ClassVar[int] = 1

    def tensors(self, columns: int, depth: int) -> dict[str, TensorSpec]:
        groups = self.groups(depth)
        return {
            "qweight": TensorSpec((-(-depth // 8), columns), dt.int32),
            "qzeros": TensorSpec((groups, -(-columns // 8)), dt.int32),
            "scales": TensorSpec((groups, columns), dt.float32),
            "g_idx": TensorSpec((depth,), dt.int32),
        }

    def decode(self, stored: Mapping[str, Array], columns: int, depth: int) -> Codes:
        group = self.grid.group or max(depth, 1)
        if (stored["g_idx"] != np.arange(depth) // group).any():
            raise QuantError(
                f"{self.name}: want groups of neighbouring inputs, have others in g_idx (desc_act); "
                "fix: take a checkpoint made with desc_act false"
            )
        code = unpacked(stored["qweight"].T, 4)[:, :depth]
        zero = unpacked(stored["qzeros"], 4)[:, :columns].T + np.int8(self.off)
        return self.with_zeros(code, stored["scales"].T, zero)


class GptqV2(Gptq):
    name: ClassVar[str] = "gptq_v2"
    off: ClassVar[int] = 0
