"""What the ops' functions share: wide arithmetic, products, rows by index, checks of values on the host.

Arithmetic is in float32 with one rounding at the end, as the contracts say. On the CPU place products, sums
and functions run in float64: the bits of a row then do not depend on the batch, which the libraries below
do not promise of their float32 code.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_xpu import settings
from fd_xpu.framework import paddle
from fd_xpu.memory import recast

Array = np.ndarray[Any, Any]
Value = Any  # a Paddle tensor
LOWEST = float(np.finfo(np.float32).min)


def f32(x: Value) -> Value:
    return x if x.dtype == paddle.float32 else x.astype("float32")


def wide(x: Value) -> Value:
    """float32; float64 on the CPU place, for functions and sums whose float32 bits there depend on where in
    the tensor an element lies."""
    return x.astype("float64" if x.place.is_cpu_place() else "float32")


def matmul(x: Value, y: Value, transpose_y: bool = False) -> Value:
    """x @ y accumulated in float32 or wider; the result has x's type, on the CPU place float32."""
    if x.place.is_cpu_place():
        wide = (v if v.dtype == paddle.float64 else v.astype("float64") for v in (x, y))
        return paddle.matmul(*wide, transpose_y=transpose_y).astype("float32")
    return paddle.matmul(x, y.astype(x.dtype), transpose_y=transpose_y)


def host(x: Value) -> Array:
    """A small tensor's values; waits for the device."""
    return np.asarray(x.numpy())


def like(array: Any, x: Value) -> Value:
    """Host values as a tensor where `x` is."""
    return paddle.to_tensor(np.ascontiguousarray(array), place=x.place)


def packed(x: Value) -> Value:
    """`x` without gaps. Never `Tensor.contiguous`, which in Paddle 3.3 moves the tensor itself to a copy:
    a view would no longer share the memory that it is a view of."""
    return x if x.is_contiguous() else x.clone()


def flat(x: Value) -> Value:
    return x.reshape([-1])


# -- moving rows: any element type, as words that every place can gather and scatter -------------------


def words(rows: Value) -> Value:
    """A matrix [n, m] with the same bytes per row, in 32-bit words where they fit. Shares memory with
    `rows` if that is contiguous and starts at a multiple of 4 bytes."""
    rows = packed(rows)
    size = rows.element_size()
    if size < 4 and rows.shape[1] * size % 4 == 0:
        return recast(rows.clone() if rows.data_ptr() % 4 else rows, "int32")
    return rows.view({1: "uint8", 2: "int16", 4: "int32", 8: "int64"}[size])


def take_rows(x: Value, ids: Value) -> Value:
    """x[ids] along dimension 0, bit for bit, for any element type."""
    shape = [ids.size, *x.shape[1:]]
    if 0 in shape:
        return paddle.zeros(shape, x.dtype)
    found = paddle.gather(words(x.reshape([x.shape[0], -1])), flat(ids))
    return found.view(x.dtype).reshape(shape)


def put_rows(target: Value, ids: Value, rows: Value) -> None:
    """target[ids] = rows in place; `target` is a contiguous matrix, no id appears twice."""
    paddle.scatter_(words(target), ids, words(rows), overwrite=True)


# -- checks ---------------------------------------------------------------------------------------------


def check(condition: bool, label: str, want: object, have: object) -> None:
    """ValueError "op.argument: want ..., have ..." unless `condition`."""
    if not condition:
        raise ValueError(f"{label}: want {want}, have {have}")


def check_range(label: str, ids: Value, low: int, high: int) -> Value:
    """The ids, each in [low, high). Where they are not checked (FD_XPU_CHECK_IDS), those outside become
    the nearest inside: nothing is read that is not the tensor's."""
    if not settings.check_ids(bool(ids.place.is_cpu_place())):
        return ids.clip(low, max(low, high - 1))
    check_host_range(label, host(ids), low, high)
    return ids


def check_host_range(label: str, ids: Array, low: int, high: int) -> None:
    """ValueError that names the first id outside [low, high) and its position."""
    line = ids.reshape(-1)
    bad = np.flatnonzero((line < low) | (line >= high))
    if bad.size:
        at = int(bad[0])
        raise ValueError(f"{label}: want indices in [{low}, {high}), have {line[at]} at position {at}")
