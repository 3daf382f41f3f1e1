"""paged_attention: causal attention of packed query tokens over a paged key/value cache."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from fd_core.api.dtype import FLOATS
from fd_core.ops.checks import DataError
from fd_core.ops.kv_cache.reshape_and_cache_flash import LARGEST_CODE, code_floats, code_rows
from fd_core.ops.schema import Array, Case, In, OptIn, Out, Tolerance, op

TOLERANCE = Tolerance(
    "logits are float32 sums of dim products of order one (error about 1e-6 at dim 128), which the "
    "exponential passes on as relative error; weighted means add a few ulp; inputs widen exactly; one "
    "rounding at the end, so one ulp of the output type (2^-8 for bfloat16, 2^-11 for float16). Products "
    "of 16-bit types take 16-bit weights: each is off by half an ulp at most (2^-9, 2^-12), and so the "
    "mean by that times the mean of |value|, below two where every key counts and one where many do",
    {"float32": (3e-5, 1e-5), "bfloat16": (2**-7, 2**-8), "float16": (2**-10, 2**-11)},
)


def random_inputs(
    rng: np.random.Generator,
    dtype: np.dtype[Any],
    queries: Sequence[int],
    past: Sequence[int],
    *,
    heads: tuple[int, int] = (4, 2),
    dim: int = 64,
    block_size: int = 16,
    window: int = 0,
    soft_cap: float = 0.0,
    sinks: bool = False,
    cache_dtype: np.dtype[Any] | None = None,
    codes: str = "",
) -> dict[str, Any]:
    """Inputs of a step: sequence s brings queries[s] tokens behind past[s] cached ones.

    `codes`: the type of a cache of codes with scales. Blocks are scattered; every slot that no query may
    see, and every block of no sequence, holds NaN.
    """
    lengths = [n + p if n else 0 for n, p in zip(queries, past, strict=True)]
    needed = [-(-n // block_size) for n in lengths]
    blocks = sum(needed) + 2
    table = np.full((len(queries), max([*needed, 1]) + 1), -1, np.int32)
    order = rng.permutation(blocks)
    pool = np.full((2, blocks, block_size, heads[1], dim), np.nan, np.float32)
    for s, n in enumerate(lengths):
        table[s, : needed[s]], order = order[: needed[s]], order[needed[s] :]
        at = np.arange(n)
        rows = rng.standard_normal((2, n, heads[1], dim))
        pool[:, table[s, at // block_size], at % block_size] = rows
    key_cache, value_cache = code_rows(pool, codes) if codes else pool.astype(cache_dtype or dtype)
    return {
        "q": rng.standard_normal((sum(queries), heads[0], dim)).astype(dtype),
        "key_cache": key_cache,
        "value_cache": value_cache,
        "cu_seqlens_q": np.cumsum([0, *queries], dtype=np.int32),
        "seq_lens": np.array(lengths, np.int32),
        "block_table": table,
        "sinks": rng.standard_normal(heads[0]).astype(np.float32) if sinks else None,
        "scale": dim**-0.5,
        "window": window,
        "soft_cap": soft_cap,
    }


def _case(id: str, queries: Sequence[int], past: Sequence[int], bench: bool = False, **more: Any) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        return random_inputs(rng, dtype, queries, past, **more)

    keys, (heads, kv_heads) = sum(queries) + sum(past), more.get("heads", (4, 2))
    dim = more.get("dim", 64)
    pairs = sum(n * p + n * (n + 1) // 2 for n, p in zip(queries, past, strict=True))
    sizes = {"bytes": lambda size: 2 * size * keys * kv_heads * dim, "flops": 4 * pairs * heads * dim}
    return Case(id, args, FLOATS, bench, **sizes)


_LARGE: dict[str, Any] = {"heads": (32, 8), "dim": 128, "block_size": 64}
CASES = [
    _case("empty", [], []),
    _case("nothing-to-do", [0, 0], [0, 5]),
    _case("prefill", [37], [0]),
    _case("chunked", [19], [300]),
    _case("decode", [1, 1, 1], [0, 40, 511]),
    _case("mixed", [1, 0, 5, 33], [600, 7, 250, 0], heads=(6, 2), dim=40),
    _case("mha-dim8", [3, 20], [13, 0], heads=(3, 3), dim=8, block_size=1),
    _case("mqa-dim256", [2, 9], [5, 0], heads=(5, 1), dim=256),
    _case("window", [7, 70], [400, 300], window=33),
    _case("window-1", [5], [3], window=1),
    _case("sinks", [6, 1], [0, 270], sinks=True, window=128),
    _case("soft-cap", [6, 1], [0, 270], soft_cap=5.0),
    _case("group-7", [4, 1], [20, 100], heads=(7, 1), dim=128),
    _case("int8-cache", [1, 0, 5, 33], [600, 7, 250, 0], heads=(6, 2), dim=40, codes="int8"),
    _case("int8-decode", [1, 1], [40, 511], dim=128, codes="int8"),
    _case("float8-cache", [1, 0, 5, 33], [600, 7, 250, 0], heads=(6, 2), dim=40, codes="float8_e4m3fn"),
    _case("float8-decode", [1, 1], [40, 511], dim=128, codes="float8_e4m3fn"),
    _case("decode-4096", [1], [4095], bench=True, **_LARGE),
    _case("prefill-512", [512], [0], bench=True, **_LARGE),
]


def _check(cu: Array, seq_lens: Array, table: Array, blocks: int, block_size: int, window: int) -> None:
    for s, n in enumerate(np.diff(cu)):
        if n and seq_lens[s] < n:
            raise DataError(f"paged_attention.seq_lens: sequence {s}: want >= {n}, have {seq_lens[s]}")
        first = max(0, int(seq_lens[s]) - int(n) + 1 - window) if window else 0
        for block in range(first // block_size, -(-int(seq_lens[s]) // block_size) if n else 0):
            have = table[s, block] if block < table.shape[1] else None
            if have is None or not 0 <= have < blocks:
                raise DataError(
                    f"paged_attention.block_table: sequence {s}, block {block}: "
                    f"want an id in [0, {blocks}), have {have}"
                )


def _attend(q: Array, k: Array, v: Array, seen: Array, sinks: Array | None, cap: float) -> Array:
    """q [n, Hkv, group, D], already scaled; k, v [keys, Hkv, D]; seen [n, keys] -> like q."""
    logits = np.einsum("nhgd,khd->nhgk", q, k)
    if cap:
        logits = cap * np.tanh(logits / cap)
    logits = np.where(seen[:, None, None], logits, -np.inf)
    top = logits.max(axis=-1, keepdims=True)
    if sinks is not None:
        sinks = sinks.reshape(q.shape[1], q.shape[2], 1).astype(np.float64)
        top = np.maximum(top, sinks)
    weights = np.exp(logits - top)
    total = weights.sum(axis=-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks - top)
    result: Array = np.einsum("nhgk,khd->nhgd", weights / total, v)
    return result


def _floats(rows: Array) -> Array:
    return (code_floats(rows) if rows.dtype.name in LARGEST_CODE else rows).astype(np.float64)


@op(
    family="attention",
    infer=lambda q, **_: [q],
    cases=CASES,
    tolerance=TOLERANCE,
)
def paged_attention(
    q: In,
    key_cache: In,
    value_cache: In,
    cu_seqlens_q: In,
    seq_lens: In,
    block_table: In,
    sinks: OptIn,
    scale: float,
    window: int,
    soft_cap: float,
    out: Out,
) -> None:
    """out[i] = softmax(scale * q[i] . keys) . values over the keys that token i may see.

    q, out [tokens, heads, dim] float32 | bfloat16 | float16, dim a multiple of 8 up to 512, last
    stride 1, others free. key_cache, value_cache: logical [blocks, block_size, kv_heads, dim] float32 |
    bfloat16 | float16, whatever the memory order (last stride 1), or int8 | float8_e4m3fn [..., dim + 4]
    as reshape_and_cache_flash writes it: codes, then their scale; heads is a multiple of kv_heads and
    query head h reads key head h // (heads / kv_heads). cu_seqlens_q [sequences + 1] int32: exclusive
    prefix sum of queries; rows of out behind its last entry stay as they are. seq_lens [sequences]
    int32: keys visible to a sequence's last query, this step's included. block_table [sequences,
    max_blocks] int32: the key at position p lies in block block_table[s, p // block_size].

    Query i of n sits at position seq_lens - n + i and sees the keys up to its own; `window` > 0: only
    that many of them, its own included. `soft_cap` > 0: logits become cap * tanh(logits / cap). sinks
    [heads] float32: one more logit per head that takes weight and gives no value. Arithmetic in
    float32; weights may be rounded to the values' type before they meet; one rounding at the end. A
    row's result does not depend on what the rows beside it hold.

    Nothing is read from blocks and slots that no query sees. A sequence without queries is skipped,
    its length and table row are not looked at. ValueError for seq_lens below the number of queries or
    a needed block that is -1 or out of range (names sequence and block); nothing is written then.
    Sources: Kwon et al. 2023 (paging), Dao et al. 2022 (online softmax); specification
    ops-attention-kv §4. The oracle works in float64.
    """
    (blocks, block_size, kv_heads, _), dim = key_cache.shape, q.shape[2]
    _check(cu_seqlens_q, seq_lens, block_table, blocks, block_size, window)
    for s, (begin, end) in enumerate(pairwise(cu_seqlens_q)):
        if begin == end:
            continue
        positions = np.arange(seq_lens[s] - (end - begin), seq_lens[s])
        keys = np.arange(max(0, positions[0] + 1 - window) if window else 0, seq_lens[s])
        seen = keys <= positions[:, None]
        if window:
            seen &= keys > positions[:, None] - window
        where = block_table[s, keys // block_size], keys % block_size
        k, v = (_floats(cache[where]) for cache in (key_cache, value_cache))
        rows = q[begin:end].astype(np.float64).reshape(end - begin, kv_heads, -1, dim) * scale
        out[begin:end] = _attend(rows, k, v, seen, sinks, soft_cap).reshape(out[begin:end].shape)
