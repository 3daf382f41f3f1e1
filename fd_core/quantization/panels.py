"""The forms of converted checkpoints (`fd quantize`): panels of 32 outputs, one order for every device.

Those whose kernels read panels use them where they lie in the file, others pack the codes anew.

int8-panels-1       `qweight` [out / 32, in / 4, 32, 4] int8, `scale` [out] float32
int4-panels-1       `qweight` [out / 32, groups, bytes of a group] uint8: 32 bfloat16 scales, then codes
                    [inputs of a group / 4, 16, 4], the low nibble that of output j, the high one that of
                    output 16 + j, two's complement; scales in the same order. One scale for all inputs of
                    an output: groups of 128 that repeat it
int4-zero-panels-1  the same with 32 int8 zero points, output by output, behind the scales

Both sizes are rounded up, what fills up is 0.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from fd_core.api import dtype as dt
from fd_core.api.tensor import TensorSpec
from fd_core.quantization.codes import CodeFormat, Codes

Array = np.ndarray[Any, Any]
PANEL, QUAD, WHOLE_GROUP = 32, 4, 128


class Panels(CodeFormat):
    """What the three share: they are written too."""

    joined: ClassVar[bool] = True

    @abstractmethod
    def encode(self, codes: Codes) -> dict[str, Array]:
        """The tensors of `tensors`."""


class Int8Panels(Panels):
    name: ClassVar[str] = "int8-panels-1"

    def tensors(self, columns: int, depth: int) -> dict[str, TensorSpec]:
        shape = (-(-columns // PANEL), -(-depth // QUAD), PANEL, QUAD)
        return {"qweight": TensorSpec(shape, dt.int8), "scale": TensorSpec((columns,), dt.float32)}

    def decode(self, stored: Mapping[str, Array], columns: int, depth: int) -> Codes:
        wide = stored["qweight"].transpose(0, 2, 1, 3)
        code = wide.reshape(wide.shape[0] * PANEL, -1)[:columns, :depth]
        return Codes(np.ascontiguousarray(code), stored["scale"][:, None], None)

    def encode(self, codes: Codes) -> dict[str, Array]:
        wide = _filled(codes.code, PANEL, QUAD)
        panels = wide.reshape(-1, PANEL, wide.shape[1] // QUAD, QUAD).transpose(0, 2, 1, 3)
        return {"qweight": np.ascontiguousarray(panels), "scale": codes.scale[:, 0]}


class Int4Panels(Panels):
    name: ClassVar[str] = "int4-panels-1"
    zeros: ClassVar[bool] = False

    @property
    def _length(self) -> int:
        return self.grid.group or WHOLE_GROUP

    def tensors(self, columns: int, depth: int) -> dict[str, TensorSpec]:
        nbytes = PANEL * (2 + self.zeros) + self._length * PANEL // 2
        shape = (-(-columns // PANEL), -(-depth // self._length), nbytes)
        return {"qweight": TensorSpec(shape, dt.uint8)}

    def decode(self, stored: Mapping[str, Array], columns: int, depth: int) -> Codes:
        import ml_dtypes

        packed, groups = stored["qweight"], self.groups(depth)
        head, body = np.split(packed, [PANEL * (2 + self.zeros)], 2)
        pairs = np.ascontiguousarray(head[..., : 2 * PANEL]).view(ml_dtypes.bfloat16).astype(np.float32)
        scale = _by_output(pairs.reshape(*head.shape[:2], 16, 2).swapaxes(2, 3))
        zero = _by_output(head[..., 2 * PANEL :].view(np.int8)) if self.zeros else None
        code = _by_output(_nibbles(body))[:columns].reshape(columns, -1)[:, :depth]
        used = (slice(columns), slice(groups))
        return Codes(np.ascontiguousarray(code), scale[used], None if zero is None else zero[used])

    def encode(self, codes: Codes) -> dict[str, Array]:
        import ml_dtypes

        wide = _filled(codes.code, PANEL, self._length)
        groups = wide.shape[1] // self._length
        scale = _by_panel(codes.scale, groups).astype(ml_dtypes.bfloat16)
        pairs = scale.reshape(*scale.shape[:2], 2, 16).swapaxes(2, 3).reshape(scale.shape)
        parts = [np.ascontiguousarray(pairs).view(np.uint8)]
        if codes.zero is not None:
            parts.append(_by_panel(codes.zero, groups).view(np.uint8))
        return {"qweight": np.concatenate([*parts, _bytes(wide, groups)], 2)}


class Int4ZeroPanels(Int4Panels):
    name: ClassVar[str] = "int4-zero-panels-1"
    zeros: ClassVar[bool] = True


def _filled(code: Array, rows: int, columns: int) -> Array:
    """Zeros up to multiples of these."""
    short = [(0, -size % unit) for size, unit in zip(code.shape, (rows, columns), strict=True)]
    return np.pad(code, short)


def _by_output(panels: Array) -> Array:
    """[panels, groups, ...] of 32 outputs first in the rest -> [outputs, groups, ...]."""
    wide = panels.reshape(*panels.shape[:2], PANEL, -1).swapaxes(1, 2)
    return wide.reshape(-1, *wide.shape[2:]).squeeze(-1) if wide.shape[3] == 1 else _joined(wide)


def _joined(wide: Array) -> Array:
    return np.ascontiguousarray(wide).reshape(wide.shape[0] * PANEL, wide.shape[2], -1)


def _by_panel(values: Array, groups: int) -> Array:
    """[outputs, groups or 1] -> [panels, groups, 32]."""
    each = np.broadcast_to(values, (len(values), groups))
    wide = np.pad(each, ((0, -len(each) % PANEL), (0, 0)))
    return np.ascontiguousarray(wide.reshape(-1, PANEL, groups).swapaxes(1, 2))


def _nibbles(body: Array) -> Array:
    """Bytes [panels, groups, quads * 16 * 4] -> codes [panels, groups, 32, inputs of a group] int8."""
    lanes = body.reshape(*body.shape[:2], -1, 16, QUAD).transpose(0, 1, 3, 2, 4)
    flat = np.ascontiguousarray(lanes).reshape(*body.shape[:2], 16, -1)
    low = (flat << 4).view(np.int8) >> 4
    return np.concatenate([low, flat.view(np.int8) >> 4], 2)


def _bytes(wide: Array, groups: int) -> Array:
    """Codes [outputs, inputs] -> bytes [panels, groups, quads * 16 * 4]."""
    length = wide.shape[1] // groups
    by_group = wide.reshape(-1, 2, 16, groups, length // QUAD, QUAD).transpose(0, 3, 1, 4, 2, 5)
    low, high = by_group[:, :, 0].view(np.uint8), by_group[:, :, 1].view(np.uint8)
    return np.asarray((low & 15) | (high << 4)).reshape(len(wide) // PANEL, groups, -1)
