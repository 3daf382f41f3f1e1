"""Rows of a paged cache by slot, and attention over them, composed of gathers, products and exponentials.

Index arithmetic is done on the host, where a step's lists are read once; the device moves and multiplies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fd_xpu.compute import Array, Value, check, f32, like, put_rows, take_rows, wide
from fd_xpu.framework import paddle
from fd_xpu.memory import SCALE_BYTES, offset

TINY = 1e-30
#: Queries of one sequence that are multiplied at once: bounds the logits in memory.
TILE = 256


@dataclass(frozen=True, slots=True)
class Rows:
    """A cache [blocks, block_size, heads, dim] as a contiguous matrix of rows of `dim` elements: row
    (block, offset, head) is the sum of the three times `steps`. `owner`: where to copy the matrix back,
    if its strides did not allow to share memory."""

    matrix: Value
    steps: tuple[int, int, int]
    owner: Value | None = None

    def ids(self, slots: Array, block_size: int, heads: int) -> Array:
        """[slots, heads] row numbers."""
        block, at = np.divmod(slots.astype(np.int64), block_size)
        first = block * self.steps[0] + at * self.steps[1]
        return np.asarray(first[:, None] + np.arange(heads) * self.steps[2])

    def put(self, ids: Value, rows: Value) -> None:
        put_rows(self.matrix, ids, rows)
        if self.owner is not None:
            self.owner.copy_(self.matrix.reshape(self.owner.shape), False)


def rows_of(cache: Value) -> Rows:
    """Whatever the memory order; a copy where rows of `dim` do not tile the strides."""
    shape, strides, dim = list(cache.shape), list(cache.strides), cache.shape[3]
    outer = [(n, s) for n, s in zip(shape[:3], strides[:3], strict=True) if n > 1]
    tiled = dim > 0 and (dim == 1 or strides[3] == 1) and all(s % dim == 0 for _, s in outer)
    if not tiled or 0 in shape or cache.data_ptr() % 4:
        copy = cache.clone()
        heads = shape[2]
        return Rows(copy.reshape([-1, max(dim, 1)]), (shape[1] * heads, heads, 1), cache)
    count = 1 + sum((n - 1) * (s // dim) for n, s in outer)
    matrix = paddle.as_strided(cache, [count, dim], [dim, 1], offset(cache))
    steps = tuple(s // dim if n > 1 else 0 for n, s in zip(shape[:3], strides[:3], strict=True))
    return Rows(matrix, (steps[0], steps[1], steps[2]))


# -- the work of a step ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Group:
    """Sequences that are attended together, each with as many queries: `rows` [S, n] of the step, `slots`
    [S, L] of the keys (the last one repeated where a sequence has fewer), `seen` [S, n, L]."""

    rows: Array
    slots: Array
    seen: Array


def groups(cu: Array, lengths: Array, table: Array, block_size: int, window: int) -> list[Group]:
    """Sequences with one query together, the others one by one. Their rows cover [0, cu[-1])."""
    counts = np.diff(cu)
    single = list(np.flatnonzero(counts == 1))
    several = [[s] for s in np.flatnonzero(counts > 1)]
    parts = [part for part in (single, *several) if part]
    return [_group(part, cu, lengths, table, block_size, window) for part in parts]


def _group(
    part: Sequence[Any], cu: Array, lengths: Array, table: Array, block_size: int, window: int
) -> Group:
    count = int(cu[part[0] + 1] - cu[part[0]])
    last = lengths[part].astype(np.int64)
    first = np.maximum(0, last - count + 1 - window) if window else np.zeros_like(last)
    keys = first[:, None] + np.arange(int((last - first).max()))  # positions [S, L]
    positions = (last - count)[:, None] + np.arange(count)  # of the queries [S, n]
    seen = keys[:, None, :] <= positions[:, :, None]
    if window:
        seen &= keys[:, None, :] > positions[:, :, None] - window
    held = np.minimum(keys, last[:, None] - 1)
    slots = np.take_along_axis(table[part].astype(np.int64), held // block_size, 1) * block_size
    rows = cu[part].astype(np.int64)[:, None] + np.arange(count)
    return Group(rows, slots + held % block_size, seen)


def check_step(
    op: str,
    cu: Array,
    lengths: Array,
    table: Array,
    blocks: int,
    block_size: int,
    window: int,
    argument: str = "block_table",
) -> None:
    """ValueError for a length below the number of queries, or a needed block that is not there."""
    for s, n in enumerate(np.diff(cu).tolist()):
        check(not n or lengths[s] >= n, f"{op}.seq_lens: sequence {s}", f">= {n}", lengths[s])
        first = max(0, int(lengths[s]) - n + 1 - window) if window else 0
        needed = range(first // block_size, -(-int(lengths[s]) // block_size) if n else 0)
        for block in needed:
            have = table[s, block] if block < table.shape[1] else None
            known = have is not None and 0 <= have < blocks
            label = f"{op}.{argument}: sequence {s}, block {block}"
            check(bool(known), label, f"an id in [0, {blocks})", have)


# -- attention ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Work:
    """A group on the device: `keys` numbers the rows to gather of the cache's matrix."""

    rows: Value
    keys: Value
    values: Value
    seen: Value
    shape: tuple[int, int, int]  # sequences, queries, keys


def on_device(group: Group, keys: Array, values: Array, at: Value) -> Work:
    shape = (*group.rows.shape, group.slots.shape[1])
    same = like(keys, at)
    other = same if values is keys else like(values, at)
    return Work(like(group.rows, at), same, other, like(group.seen, at), shape)


@dataclass(frozen=True, slots=True)
class Options:
    """`sinks` [heads] float32 or None; `cap` 0 for none."""

    scale: float
    cap: float = 0.0
    sinks: Value | None = None


def attend(
    q: Value, keys: Value, values: Value, works: Sequence[Work], kv_heads: int, options: Options
) -> Value:
    """[rows, heads, dim] for all rows of the step in order. q [tokens, heads, dim]; `keys` and `values` are
    the caches' matrices."""
    heads, dim = q.shape[1], q.shape[2]
    parts, rows = [], []
    for work in works:
        sequences, count, length = work.shape
        picked = wide(take_rows(q, work.rows).reshape([sequences, count, heads, dim])) * options.scale
        shape = [sequences, length, kv_heads, -1]
        pairs = ((keys, work.keys), (values, work.values))
        k, v = (cached(take_rows(matrix, ids).reshape(shape)) for matrix, ids in pairs)
        for tile in tiles(count):
            parts.append(_tile(picked[:, tile], k, v, work.seen[:, tile], options))
            rows.append(work.rows[:, tile].reshape([-1]))
    done = paddle.concat([part.reshape([-1, heads * dim]) for part in parts])
    order = paddle.argsort(paddle.concat(rows))
    return paddle.gather(done, order).reshape([-1, heads, dim])


def cached(rows: Value) -> Value:
    """Rows of a cache as numbers; rows of int8 codes end in their scale."""
    if rows.dtype != paddle.int8:
        return wide(rows)
    codes = rows[..., :-SCALE_BYTES]
    scale = rows[..., -SCALE_BYTES:].clone().view("float32")
    return wide(f32(codes) * scale)


def coded(rows: Value) -> Value:
    """Rows [..., dim] as int8 codes of absmax / 127 and, behind them, the bytes of that scale. A row with a
    NaN or an infinity has codes 0 and scale NaN; below 1e-30 everything counts as zero."""
    x = f32(rows)
    most = x.abs().max(-1, keepdim=True)
    finite = paddle.isfinite(most)
    usable = finite & (most > TINY)
    safe = paddle.where(usable, most, paddle.ones_like(most))
    scaled = paddle.where(usable, x * (127.0 / safe), paddle.zeros_like(x))
    none = paddle.where(finite, paddle.zeros_like(most), paddle.full_like(most, float("nan")))
    scale = paddle.where(usable, most / 127.0, none)
    codes = half_even(scaled).clip(-127.0, 127.0).astype("int8")
    return paddle.concat([codes, scale.view("int8")], -1)


def half_even(x: Value) -> Value:
    """Nearest integers of numbers below 2^22 in float32, ties to even, by the rounding of sums."""
    return (x + 1.5 * 2.0**23) - 1.5 * 2.0**23


def tiles(count: int) -> Iterator[slice]:
    return (slice(start, start + TILE) for start in range(0, count, TILE))


def _tile(q: Value, k: Value, v: Value, seen: Value, options: Options) -> Value:
    """q [S, n, H, D] scaled; k, v [S, L, KV, D]; seen [S, n, L] -> [S, n, H, D]."""
    sequences, count, heads, dim = q.shape
    kv_heads, length = k.shape[2], k.shape[1]
    group = heads // kv_heads
    rows = q.reshape([sequences, count, kv_heads, group, dim]).transpose([0, 2, 3, 1, 4])
    rows = rows.reshape([sequences, kv_heads, group * count, dim])
    logits = paddle.matmul(rows, k.transpose([0, 2, 3, 1])).reshape(
        [sequences, kv_heads, group, count, length]
    )
    weights = _softmax(logits, seen.unsqueeze([1, 2]), kv_heads, options)
    mixed = weights.reshape([sequences, kv_heads, group * count, length])
    out = paddle.matmul(mixed, v.transpose([0, 2, 1, 3]))
    out = out.reshape([sequences, kv_heads, group, count, dim]).transpose([0, 3, 1, 2, 4])
    return out.reshape([sequences, count, heads, dim])


def _softmax(logits: Value, seen: Value, kv_heads: int, options: Options) -> Value:
    if options.cap:
        logits = options.cap * paddle.tanh(logits / options.cap)
    logits = paddle.where(seen, logits, paddle.full_like(logits, float("-inf")))
    top = logits.max(-1, keepdim=True)
    if options.sinks is None:
        grown = paddle.exp(logits - top)
        return grown / grown.sum(-1, keepdim=True)
    sinks = options.sinks.astype(logits.dtype).reshape([1, kv_heads, -1, 1, 1])
    top = paddle.maximum(top, sinks)
    grown = paddle.exp(logits - top)
    return grown / (grown.sum(-1, keepdim=True) + paddle.exp(sinks - top))
