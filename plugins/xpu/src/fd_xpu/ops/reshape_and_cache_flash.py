"""reshape_and_cache_flash: write the keys and values of new tokens into the paged cache."""

from __future__ import annotations

import numpy as np

from fd_xpu.call import PaddleKernel, rounded
from fd_xpu.compute import Array, Value, check, f32, host, like, packed, put_rows, take_rows
from fd_xpu.framework import paddle
from fd_xpu.memory import SCALE_BYTES
from fd_xpu.paging import coded, rows_of

NAME = "reshape_and_cache_flash"
AUTO, FP8, INT8 = ("auto", ""), "fp8_e4m3", "int8"
LARGEST = 448.0  # of e4m3fn


@PaddleKernel
def reshape_and_cache_flash(
    key: Value,
    value: Value,
    key_cache: Value,
    value_cache: Value,
    slot_mapping: Value,
    k_scale: Value | None,
    v_scale: Value | None,
    kv_cache_dtype: str,
) -> None:
    """In place: one scatter of rows per cache. Skipped slots are dropped on the host."""
    modes = (*AUTO, FP8, INT8)
    check(kv_cache_dtype in modes, f"{NAME}.kv_cache_dtype", modes, repr(kv_cache_dtype))
    _check_types(key, key_cache, kv_cache_dtype)
    slots = host(slot_mapping)
    limit = key_cache.shape[0] * key_cache.shape[1]
    most = int(slots.max(initial=-1))
    check(most < limit, f"{NAME}.slot_mapping", f"slots below {limit}", most)
    if kv_cache_dtype == FP8:
        given = k_scale is not None and v_scale is not None
        check(given, f"{NAME}.k_scale", "scales for both caches", "None")
    kept = np.flatnonzero(slots >= 0)
    if kept.size and key.shape[1] * key.shape[2]:
        for rows, cache, scale in ((key, key_cache, k_scale), (value, value_cache, v_scale)):
            chosen = rows if kept.size == slots.size else take_rows(rows, like(kept, rows))
            write_rows(chosen, cache, slots[kept], scale if kv_cache_dtype == FP8 else None)


def _check_types(key: Value, cache: Value, mode: str) -> None:
    width = key.shape[2] + (SCALE_BYTES if mode == INT8 else 0)
    check(cache.shape[3] == width, f"{NAME}.key_cache", f"rows of {width}", list(cache.shape))
    if mode in (FP8, INT8):
        allowed = [paddle.uint8 if mode == FP8 else paddle.int8]
    else:
        allowed = [key.dtype]
        if key.dtype == paddle.float32:
            allowed += [paddle.bfloat16, paddle.float16]
    if cache.dtype not in allowed:
        want = " | ".join(str(t).rpartition(".")[2] for t in allowed)
        raise TypeError(f"{NAME}.key_cache: want {want}, have {str(cache.dtype).rpartition('.')[2]}")


def write_rows(rows: Value, cache: Value, slots: Array, scale: Value | None) -> None:
    """rows [n, heads, dim] into the slots [n] of a cache, as its type stores them."""
    heads = rows.shape[1]
    if cache.dtype == paddle.int8:
        stored = coded(rows)
    elif scale is None:
        stored = rounded(rows, cache.dtype)
    else:
        stored, steps = quantised(rows)
        lines = packed(scale).reshape([-1, heads])
        put_rows(lines, like(slots, scale), steps)
        if not scale.is_contiguous():
            scale.copy_(lines.reshape(scale.shape), False)
    place = rows_of(cache)
    ids = place.ids(slots, cache.shape[1], heads).reshape(-1)
    place.put(like(ids, cache), stored.reshape([-1, cache.shape[3]]))


def quantised(rows: Value) -> tuple[Value, Value]:
    """(codes [n, heads, dim] uint8, scales [n, heads]): absmax / 448 and the nearest e4m3fn code."""
    wide = f32(rows)
    scale = (wide.abs().max(-1) / LARGEST).clip(min=1e-12)
    scaled = (wide / scale.unsqueeze(-1)).clip(-LARGEST, LARGEST)
    codes = scaled.astype("float8_e4m3fn").view("uint8").astype("int32")
    nan = paddle.full_like(codes, 0x7F)
    return paddle.where(paddle.isnan(scaled), nan, codes).astype("uint8"), scale
