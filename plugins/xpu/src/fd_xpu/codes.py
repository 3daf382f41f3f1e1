"""Codes of weight_quantize in the order of architectures 75 to 90 (specification ops-quant-moe §4)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from fd_xpu.compute import Array, Value, check, f32, flat, like
from fd_xpu.framework import paddle

ARCHS = (0, 75, 80, 86, 89, 90)
LIMITS = {"weight_only_int8": 127, "weight_only_int4": 7}
GROUPS = (-1, 64, 128)


@dataclass(frozen=True, slots=True)
class Order:
    """Codes of a weight [depth, columns]; `group` steps of depth share a scale (-1: all)."""

    int4: bool
    depth: int
    columns: int
    group: int

    @property
    def step(self) -> int:
        return max(1, self.depth) if self.group < 0 else self.group

    @property
    def bias(self) -> int:
        return 8 if self.int4 else 128

    def spread(self, scale: Value) -> Value:
        """The scale of every code [depth, columns], float32."""
        rows = f32(scale).reshape([-1, self.columns])
        return paddle.repeat_interleave(rows, self.step, axis=0)[: self.depth]

    def unpacked(self, stored: Value) -> Value:
        """Stored bytes to signed codes [depth, columns], float32; nibbles part by floor and difference."""
        line = f32(flat(stored).view("uint8"))
        if self.int4:
            high = paddle.floor(line / 16.0)
            line = flat(paddle.stack([line - 16.0 * high, high], -1))
        where = like(places(self.int4, self.depth, self.columns).reshape(-1), stored)
        return paddle.gather(line, where).reshape([self.depth, self.columns]) - float(self.bias)

    def packed(self, codes: Array) -> Array:
        """Signed codes [depth, columns] on the host to the stored bytes."""
        line = np.empty(codes.size, np.uint8)
        line[places(self.int4, self.depth, self.columns).reshape(-1)] = (codes + self.bias).reshape(-1)
        stored = line[0::2] | line[1::2] << 4 if self.int4 else line
        return stored.view(np.int8).reshape(-1, self.depth)


@cache
def places(int4: bool, depth: int, columns: int) -> Array:
    """[depth, columns]: byte (int8) or nibble (int4, the low one first) of every code."""
    k, n = np.arange(depth)[:, None], np.arange(columns)[None, :]
    if int4:
        turned = k // 32 * 32 + 4 * (k % 8) + k % 32 // 8
        return np.asarray(n // 4 * (4 * depth) + turned // 64 * 256 + n % 4 * 64 + turned % 64)
    half = k % 16
    turned = k // 16 * 16 + np.where(half < 8, 2 * half, 2 * half - 15)
    return np.asarray(n // 2 * (2 * depth) + turned // 64 * 128 + n % 2 * 64 + turned % 64)


def order(op: str, algo: str, arch: int | None, group: int, depth: int, columns: int) -> Order:
    """ValueError for algorithms, architectures, groups and sizes that have no such order."""
    check(algo in LIMITS, f"{op}.algo", " | ".join(LIMITS), repr(algo))
    check((arch or 0) in ARCHS, f"{op}.arch", f"one of {ARCHS}", arch)
    check(group in GROUPS, f"{op}.group_size", f"one of {GROUPS}", group)
    fits = depth % 64 == 0 and columns % 16 == 0
    check(fits, f"{op}.x", "K a multiple of 64 and N of 16", f"K {depth}, N {columns}")
    return Order(algo == "weight_only_int4", depth, columns, group)
