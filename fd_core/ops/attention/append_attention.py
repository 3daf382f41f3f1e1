"""append_attention: rotate, normalise, write the paged cache and attend, from one packed projection."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from fd_core.api.dtype import FLOATS
from fd_core.api.tensor import TensorSpec
from fd_core.ops.attention.paged_attention import paged_attention
from fd_core.ops.checks import DataError
from fd_core.ops.schema import Array, Case, In, InOut, OptIn, Out, Tolerance, op

TOLERANCE = Tolerance(
    "rotation and norm in float32 differ by an ulp where products are fused, which may move a query or "
    "key by one ulp of its type (2^-8 for bfloat16, 2^-11 for float16); a logit of order one then moves "
    "by a few such ulps over sqrt(dim), and the weights with it",
    {"float32": (5e-5, 2e-5), "bfloat16": (2**-6, 1e-2), "float16": (2**-9, 2e-3)},
)


def rotary_table(positions: int, width: int, copies: int = 1) -> Array:
    """[2, 1, positions, 1, copies * width] float32: cosines and sines of pos * 10000^(-j / width)."""
    angles = np.outer(np.arange(positions), 10000.0 ** (-np.arange(width) / width))
    table = np.stack([np.cos(angles), np.sin(angles)])[:, None, :, None]
    return np.tile(table, copies).astype(np.float32)


def random_inputs(
    rng: np.random.Generator,
    dtype: np.dtype[Any],
    queries: Sequence[int],
    past: Sequence[int],
    *,
    heads: tuple[int, int] = (4, 2),
    dim: int = 64,
    block_size: int = 16,
    neox: bool = False,
    table: str = "full",
    norm: bool = False,
    bias: bool = False,
    sinks: bool = False,
    window: int = 0,
    padding: int = 0,
) -> dict[str, Any]:
    """Inputs of a step; slots that no query may see hold NaN. `table`: full, duplicated, partial, none."""
    tokens, columns = sum(queries) + padding, (heads[0] + 2 * heads[1]) * dim
    lengths = [n + p for n, p in zip(queries, past, strict=True)]
    needed = [-(-n // block_size) for n in lengths]
    blocks, most = sum(needed) + 2, max([*needed, 1]) + 1
    order = iter(rng.permutation(blocks))
    rows = [[next(order) for _ in range(n)] + [-1] * (most - n) for n in needed]
    tables = np.array(rows, np.int32).reshape(-1, most)
    caches = np.full((2, blocks, heads[1], block_size, dim), np.nan, np.float32)
    for s, n in enumerate(past):
        at = np.arange(n)
        caches[:, tables[s, at // block_size], :, at % block_size] = rng.standard_normal(
            (n, 2, heads[1], dim)
        )
    kinds = {"full": (dim // 2, 1), "duplicated": (dim // 2, 2), "partial": (dim // 4, 1), "none": (0, 0)}
    width, copies = kinds[table]

    def optional(wanted: bool, *shape: int) -> Array | None:
        return rng.uniform(0.5, 1.5, shape).astype(np.float32) if wanted else None

    def typed(array: Array | None) -> Array | None:
        return None if array is None else array.astype(dtype)

    return {
        "qkv": rng.standard_normal((tokens, columns)).astype(dtype),
        "key_cache": caches[0].astype(dtype),
        "value_cache": caches[1].astype(dtype),
        "seq_lens_decoder": np.array(past, np.int32),
        "seq_lens_this_time": np.array(queries, np.int32),
        "cu_seqlens_q": np.cumsum([0, *queries], dtype=np.int32),
        "block_tables": tables,
        "rotary_embs": rotary_table(max([*lengths, 1]) + 3, width, copies) if table != "none" else None,
        "qkv_bias": typed(optional(bias, columns)),
        "q_norm_weight": optional(norm, dim),
        "k_norm_weight": optional(norm, dim),
        "sinks": typed(optional(sinks, heads[0])),
        "rms_norm_eps": 1e-6,
        "use_neox_rotary_style": neox,
        "sliding_window": window,
    }


def _case(id: str, queries: Sequence[int], past: Sequence[int], bench: bool = False, **more: Any) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        return random_inputs(rng, dtype, queries, past, **more)

    return Case(id, args, FLOATS, bench)


CASES = [
    _case("empty", [], []),
    _case("prefill", [21], [0]),
    _case("chunked-padded", [9, 0, 4], [30, 7, 0], padding=3),
    _case("decode-speculative", [1, 5], [260, 40], heads=(6, 2), dim=40, neox=True),
    _case("neox-duplicated", [3, 1], [0, 20], neox=True, table="duplicated"),
    _case("neox-partial", [3, 1], [0, 20], neox=True, table="partial"),
    _case("all-options", [7, 1], [0, 33], norm=True, bias=True, sinks=True, window=9, dim=128),
    _case("no-rotation", [4], [5], table="none"),
    _case("decode-4096", [1], [4095], True, heads=(32, 8), dim=128, block_size=64, neox=True),
]


def _output(
    qkv: TensorSpec, key_cache: TensorSpec, value_cache: TensorSpec, **_: Any
) -> Sequence[TensorSpec]:
    _blocks, kv_heads, _size, dim = key_cache.shape
    return [TensorSpec((qkv.shape[0], qkv.shape[1] - 2 * kv_heads * dim), qkv.dtype)]


def _rotate(x: Array, table: Array, positions: Array, neox: bool) -> None:
    """x [tokens, heads, dim] float32, in place."""
    half = min(x.shape[-1], 2 * table.shape[-1]) // 2
    cos, sin = table[:, 0, positions, :, :half]
    first, second = (slice(half), slice(half, 2 * half)) if neox else (slice(0, None, 2), slice(1, None, 2))
    a, b = x[..., first].copy(), x[..., second].copy()
    x[..., first], x[..., second] = a * cos - b * sin, b * cos + a * sin


def _normalise(x: Array, weight: Array, eps: float) -> None:
    x *= weight / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(eps))


def _heads(qkv: Array, bias: Array | None, kv_heads: int, dim: int) -> list[Array]:
    """Queries, keys, values [tokens, heads, dim] in float32, biased."""
    wide = qkv.astype(np.float32)
    if bias is not None:
        wide += bias.astype(np.float32)
    heads = wide.reshape(len(wide), wide.shape[1] // dim, dim)
    return np.split(heads, [-2 * kv_heads, -kv_heads], axis=1)


def _prepare(
    parts: Sequence[Array],
    table: Array | None,
    positions: Array,
    norms: Sequence[Array | None],
    neox: bool,
    eps: float,
) -> None:
    """Rotate, then normalise, in place."""
    for part, weight in zip(parts, norms, strict=True):
        if table is not None:
            _rotate(part, table, positions, neox)
        if weight is not None:
            _normalise(part, weight, eps)


def _check(queries: Array, past: Array, cu: Array, tokens: int, table: Array | None) -> None:
    for s, (begin, end) in enumerate(pairwise(cu)):
        if end - begin != queries[s] or queries[s] < 0 or end > tokens:
            raise DataError(
                f"append_attention.cu_seqlens_q: sequence {s}: want {begin} + {queries[s]} within the "
                f"{tokens} tokens, have {end}"
            )
        if queries[s] and table is not None and past[s] + queries[s] > table.shape[2]:
            raise DataError(
                f"append_attention.rotary_embs: sequence {s}: want {past[s] + queries[s]} positions, "
                f"have {table.shape[2]}"
            )


def _check_blocks(queries: Array, past: Array, tables: Array, blocks: int, size: int, window: int) -> None:
    for s, n in enumerate(queries):
        first = max(0, int(past[s]) + 1 - window) if window else 0
        for block in range(first // size, -(-int(past[s] + n) // size) if n else 0):
            have = tables[s, block] if block < tables.shape[1] else None
            if have is None or not 0 <= have < blocks:
                raise DataError(
                    f"append_attention.block_tables: sequence {s}, block {block}: "
                    f"want an id in [0, {blocks}), have {have}"
                )


@op(family="attention", infer=_output, cases=CASES, tolerance=TOLERANCE)
def append_attention(
    qkv: In,
    key_cache: InOut,
    value_cache: InOut,
    seq_lens_decoder: In,
    seq_lens_this_time: In,
    cu_seqlens_q: In,
    block_tables: In,
    rotary_embs: OptIn,
    qkv_bias: OptIn,
    q_norm_weight: OptIn,
    k_norm_weight: OptIn,
    sinks: OptIn,
    rms_norm_eps: float,
    use_neox_rotary_style: bool,
    sliding_window: int,
    out: Out,
) -> None:
    """Bias, rotary embedding, head norm, cache write and causal attention for packed tokens.

    qkv [tokens, (heads + 2 * kv_heads) * dim] float32 | bfloat16 | float16: query heads, then keys,
    then values; it is not changed. key_cache, value_cache [blocks, kv_heads, block_size, dim] of the
    same type, outer strides free. All lists int32, flat in any shape: seq_lens_this_time: tokens of
    each sequence in this step (0 takes no part); seq_lens_decoder: tokens in the cache before it;
    cu_seqlens_q [sequences + 1]: prefix sum of this_time; block_tables [sequences, max_blocks].
    out [tokens, heads * dim]; rows behind the last sequence (padding) become zero.

    x = qkv + qkv_bias, in float32. Queries and keys are then rotated by rotary_embs [2, 1, positions, 1,
    width] float32 (cosines, sines) at the token's position: pairs (2j, 2j + 1) with width dim / 2, or
    with use_neox_rotary_style pairs (j, j + r / 2) of the first r = min(dim, 2 * width) dimensions.
    Then, with q_norm_weight and k_norm_weight [dim] float32, each head is x * weight / sqrt(mean(x^2) +
    rms_norm_eps): after the rotation. Rounded once to qkv's type, keys and values go to their slots.
    Attention reads the cache: scale 1 / sqrt(dim), sliding_window > 0: that many keys, the token's own
    included; sinks [heads] of qkv's type as in `paged_attention`.

    Left to other ops or front ends: tile lists, integer qkv, masks, quantised caches and outputs,
    tables per sequence. ValueError for lists that disagree, a missing block or a position beyond the
    table; nothing is written then. Source: specification ops-attention-kv §4, §0.
    """
    queries, past, cu = (np.ravel(x) for x in (seq_lens_this_time, seq_lens_decoder, cu_seqlens_q))
    blocks, kv_heads, size, dim = key_cache.shape
    _check(queries, past, cu, len(qkv), rotary_embs)
    _check_blocks(queries, past, block_tables, blocks, size, sliding_window)
    owner = np.repeat(np.arange(len(queries)), queries)
    positions = past[owner] + np.arange(len(owner)) - cu[owner]
    norms, style = (q_norm_weight, k_norm_weight), (use_neox_rotary_style, rms_norm_eps)
    q, k, v = _heads(qkv[: len(owner)], qkv_bias, kv_heads, dim)
    _prepare((q, k), rotary_embs, positions, norms, *style)
    where = (block_tables[owner, positions // size], slice(None), positions % size)
    key_cache[where], value_cache[where] = k.astype(key_cache.dtype), v.astype(value_cache.dtype)
    logical = (cache.transpose(0, 2, 1, 3) for cache in (key_cache, value_cache))
    wide_sinks = None if sinks is None else sinks.astype(np.float32)
    lists = (cu, past + queries, block_tables, wide_sinks, dim**-0.5, sliding_window, 0.0)
    out[...] = 0
    result = out.reshape(len(out), out.shape[1] // dim, dim)[: len(owner)]  # a view
    paged_attention.oracle(q.astype(qkv.dtype), *logical, *lists, result)
