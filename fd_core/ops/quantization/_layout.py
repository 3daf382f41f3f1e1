"""Where the codes of weight_quantize lie in its output (architectures 75 to 90: one layout)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

ARCHS = (0, 75, 80, 86, 89, 90)
LIMITS = {"weight_only_int8": 127, "weight_only_int4": 7}
GROUPS = (-1, 64, 128)


@dataclass(frozen=True, slots=True)
class Layout:
    """Codes of a weight [depth, columns]; `group` steps of k share a scale (-1: all of them)."""

    int4: bool
    depth: int
    columns: int
    group: int

    @property
    def scale_shape(self) -> tuple[int, ...]:
        return (self.columns,) if self.group < 0 else (-(-self.depth // self.group), self.columns)

    @property
    def code_shape(self) -> tuple[int, int]:
        return (self.columns // 2 if self.int4 else self.columns, self.depth)

    def places(self) -> Array:
        """[depth, columns]: byte (int8) or nibble (int4, the low one first) of every code."""
        k, n = np.ogrid[: self.depth, : self.columns]
        if self.int4:
            kk = k // 32 * 32 + 4 * (k % 8) + k % 32 // 8
            return np.asarray(n // 4 * 4 * self.depth + kk // 64 * 256 + n % 4 * 64 + kk % 64)
        pair = k % 16
        kk = k // 16 * 16 + np.where(pair < 8, 2 * pair, 2 * (pair - 8) + 1)
        return np.asarray(n // 2 * 2 * self.depth + kk // 64 * 128 + n % 2 * 64 + kk % 64)

    def pack(self, codes: Array) -> Array:
        """Signed codes [depth, columns] to the stored bytes, int8."""
        flat = np.empty(codes.size, np.uint8)
        flat[self.places().reshape(-1)] = (codes + (8 if self.int4 else 128)).reshape(-1)
        packed = flat[0::2] | flat[1::2] << 4 if self.int4 else flat
        return np.asarray(packed, np.uint8).view(np.int8).reshape(self.code_shape)

    def unpack(self, stored: Array) -> Array:
        """The stored bytes to signed codes [depth, columns], int32."""
        flat = stored.reshape(-1).view(np.uint8)
        if self.int4:
            flat = np.stack([flat & 15, flat >> 4], axis=1).reshape(-1)
        return flat[self.places()].astype(np.int32) - (8 if self.int4 else 128)

    def spread(self, scale: Array) -> Array:
        """The scale of every code [depth, columns], float32."""
        wide = scale.astype(np.float32).reshape((1, *self.scale_shape)[-2:])
        times = self.depth if self.group < 0 else self.group
        return np.repeat(wide, times, axis=0)[: self.depth]


def layout(op: str, algo: str, arch: int, group: int, depth: int, columns: int) -> Layout:
    """The layout, or ValueError naming `op` and what cannot be."""
    checks: list[tuple[str, Any, Any]] = [
        ("algo", algo, tuple(LIMITS)),
        ("arch", arch, ARCHS),
        ("group_size", group, GROUPS),
    ]
    for name, have, want in checks:
        if have not in want:
            raise ValueError(f"{op}.{name}: want one of {want}, have {have!r}")
    if depth % 64 or columns % 16:
        raise ValueError(f"{op}: want K a multiple of 64 and N of 16, have K {depth}, N {columns}")
    return Layout(algo == "weight_only_int4", depth, columns, group)
