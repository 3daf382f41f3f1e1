"""append_attention: bias, rotation, head norm, cache write and causal attention for packed tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fd_xpu.call import PaddleKernel, rounded
from fd_xpu.compute import Array, Value, check, f32, host, like, take_rows, wide
from fd_xpu.framework import paddle
from fd_xpu.memory import offset
from fd_xpu.ops.fused_rotary_position_encoding import rotate
from fd_xpu.ops.paged_attention import work
from fd_xpu.ops.reshape_and_cache_flash import write_rows
from fd_xpu.paging import Options, attend, check_step, groups, rows_of

NAME = "append_attention"


@PaddleKernel
def append_attention(
    qkv: Value,
    key_cache: Value,
    value_cache: Value,
    seq_lens_decoder: Value,
    seq_lens_this_time: Value,
    cu_seqlens_q: Value,
    block_tables: Value,
    rotary_embs: Value | None,
    qkv_bias: Value | None,
    q_norm_weight: Value | None,
    k_norm_weight: Value | None,
    sinks: Value | None,
    rms_norm_eps: float,
    use_neox_rotary_style: bool,
    sliding_window: int,
) -> tuple[None, None, Value]:
    """Composed of what paged_attention and reshape_and_cache_flash are made of."""
    blocks, kv_heads, size, dim = key_cache.shape
    heads = qkv.shape[1] // dim - 2 * kv_heads
    step = Step(*(host(x).reshape(-1) for x in (seq_lens_this_time, seq_lens_decoder, cu_seqlens_q)))
    table = host(block_tables)
    _check_heads(qkv, heads, kv_heads, dim, sinks)
    _check_lists(step, qkv.shape[0], rotary_embs, dim, use_neox_rotary_style)
    check_step(NAME, step.cu, step.lengths, table, blocks, size, sliding_window, "block_tables")
    if not step.total:
        return None, None, paddle.zeros([qkv.shape[0], heads * dim], qkv.dtype)
    q, k, v = _heads(qkv[: step.total], qkv_bias, heads, kv_heads, dim)
    style = (rotary_embs, step.positions, use_neox_rotary_style)
    q, k = (
        _normed(_turned(x, *style), w, rms_norm_eps) for x, w in ((q, q_norm_weight), (k, k_norm_weight))
    )
    caches = [token_major(cache) for cache in (key_cache, value_cache)]
    for new, cache in ((k, caches[0]), (v, caches[1])):
        write_rows(new, cache, step.slots(table, size), None)
    keys, values = (rows_of(cache) for cache in caches)
    found = groups(step.cu, step.lengths, table, size, sliding_window)
    works = [work(part, keys, values, size, kv_heads, qkv) for part in found]
    options = Options(dim**-0.5, 0.0, None if sinks is None else f32(sinks))
    mixed = attend(rounded(q, qkv.dtype), keys.matrix, values.matrix, works, kv_heads, options)
    rest = paddle.zeros([qkv.shape[0] - step.total, heads * dim], qkv.dtype)
    return None, None, paddle.concat([rounded(mixed, qkv.dtype).reshape([step.total, -1]), rest])


@dataclass(frozen=True, slots=True)
class Step:
    """The step's lists on the host: new tokens of each sequence, tokens before them, prefix sums."""

    queries: Array
    past: Array
    cu: Array

    @property
    def total(self) -> int:
        return int(self.cu[-1]) if self.cu.size else 0

    @property
    def lengths(self) -> Array:
        return np.asarray(self.past + self.queries)

    @property
    def owner(self) -> Array:
        """Sequence of each token."""
        return np.repeat(np.arange(self.queries.size), self.queries)

    @property
    def positions(self) -> Array:
        owner = self.owner
        return np.asarray(self.past[owner] + np.arange(owner.size) - self.cu[owner])

    def slots(self, table: Array, size: int) -> Array:
        positions = self.positions
        blocks = table[self.owner, positions // size].astype(np.int64)
        return np.asarray(blocks * size + positions % size)


def _check_heads(qkv: Value, heads: int, kv_heads: int, dim: int, sinks: Value | None) -> None:
    fits = heads > 0 and heads % kv_heads == 0 and qkv.shape[1] % dim == 0
    check(fits, f"{NAME}.qkv", f"heads of {dim} columns in {kv_heads} groups", qkv.shape[1])
    if sinks is not None:
        check(sinks.shape[0] == heads, f"{NAME}.sinks", f"[{heads}]", list(sinks.shape))


def _check_lists(step: Step, tokens: int, rotary: Value | None, dim: int, neox: bool) -> None:
    if rotary is not None:
        whole = neox or 2 * rotary.shape[4] >= dim
        check(whole, f"{NAME}.rotary_embs", f"at least {dim // 2} columns", rotary.shape[4])
    for s, count in enumerate(step.queries.tolist()):
        begin, end = int(step.cu[s]), int(step.cu[s + 1])
        fits = count >= 0 and end - begin == count and end <= tokens
        want = f"{begin} + {count} within the {tokens} tokens"
        check(fits, f"{NAME}.cu_seqlens_q: sequence {s}", want, end)
        last = int(step.past[s]) + count
        enough = not count or rotary is None or last <= rotary.shape[2]
        check(enough, f"{NAME}.rotary_embs: sequence {s}", f"{last} positions", "fewer")


def _heads(qkv: Value, bias: Value | None, heads: int, kv_heads: int, dim: int) -> list[Value]:
    """Queries, keys, values [tokens, heads, dim] in float32, biased."""
    x = f32(qkv) if bias is None else f32(qkv) + f32(bias)
    split: list[Value] = paddle.split(x.reshape([x.shape[0], -1, dim]), [heads, kv_heads, kv_heads], axis=1)
    return split


def _turned(x: Value, table: Value | None, positions: Array, neox: bool) -> Value:
    """By cosines and sines [2, 1, positions, 1, width] of the first dimensions."""
    if table is None:
        return x
    half = min(x.shape[-1], 2 * table.shape[-1]) // 2
    rows = table.reshape([2, table.shape[2], table.shape[4]])
    where = like(positions, x)
    cos, sin = (take_rows(rows[i], where)[:, :half].unsqueeze(1) for i in (0, 1))
    return rotate(x, cos, sin, neox)


def _normed(x: Value, weight: Value | None, eps: float) -> Value:
    if weight is None:
        return x
    x = wide(x)
    return f32(x * paddle.rsqrt((x * x).mean(-1, keepdim=True) + eps) * wide(weight))


def token_major(cache: Value) -> Value:
    """[blocks, heads, size, dim] seen as [blocks, size, heads, dim]."""
    order = (0, 2, 1, 3)
    shape, strides = ([list(of)[i] for i in order] for of in (cache.shape, cache.strides))
    return paddle.as_strided(cache, shape, strides, offset(cache)) if cache.size else cache
