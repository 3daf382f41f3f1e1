"""paged_attention: causal attention of packed query tokens over a paged key/value cache."""

from __future__ import annotations

from fd_xpu.call import PaddleKernel, rounded
from fd_xpu.compute import Array, Value, check, host
from fd_xpu.framework import paddle
from fd_xpu.memory import SCALE_BYTES
from fd_xpu.paging import (
    Group,
    Options,
    Rows,
    Work,
    attend,
    check_step,
    groups,
    on_device,
    rows_of,
)

NAME = "paged_attention"


@PaddleKernel
def paged_attention(
    q: Value,
    key_cache: Value,
    value_cache: Value,
    cu_seqlens_q: Value,
    seq_lens: Value,
    block_table: Value,
    sinks: Value | None,
    scale: float,
    window: int,
    soft_cap: float,
    out: Value,
) -> None:
    """Composed. The step's lists are read back at every call; the attention backend does it once a step."""
    blocks, block_size, kv_heads, _ = key_cache.shape
    cu, lengths, table = (host(x) for x in (cu_seqlens_q, seq_lens, block_table))
    _check(q, kv_heads, cu)
    width = q.shape[2] + (SCALE_BYTES if key_cache.dtype == paddle.int8 else 0)
    check(key_cache.shape[3] == width, f"{NAME}.key_cache", f"rows of {width}", list(key_cache.shape))
    check_step(NAME, cu, lengths, table, blocks, block_size, window)
    parts = groups(cu, lengths, table, block_size, window)
    if parts:
        keys, values = rows_of(key_cache), rows_of(value_cache)
        works = [work(part, keys, values, block_size, kv_heads, q) for part in parts]
        options = Options(scale, soft_cap, sinks)
        found = attend(q, keys.matrix, values.matrix, works, kv_heads, options)
        out[: int(cu[-1])] = rounded(found, out.dtype)


def _check(q: Value, kv_heads: int, cu: Array) -> None:
    tokens, heads, dim = q.shape
    check(kv_heads > 0 and heads % kv_heads == 0, f"{NAME}.q", f"a multiple of {kv_heads} heads", heads)
    check(bool(dim % 8 == 0 and dim <= 512), f"{NAME}.q", "a head size of 8, 16 .. 512", dim)
    inside = cu.size > 0 and int(cu[-1]) <= tokens and bool((cu[1:] >= cu[:-1]).all())
    check(inside and cu[0] == 0, f"{NAME}.cu_seqlens_q", f"ascending from 0 up to {tokens}", cu.tolist())


def work(part: Group, keys: Rows, values: Rows, block_size: int, heads: int, at: Value) -> Work:
    """The group with the rows of every key head."""
    slots: Array = part.slots.reshape(-1)
    first = keys.ids(slots, block_size, heads)
    other = first if keys.steps == values.steps else values.ids(slots, block_size, heads)
    return on_device(part, first, other, at)
