"""Rotary ops: against complex multiplication, on slices of one qkv buffer, and refused positions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from agreement import TYPES, assert_agrees, assert_refused, assert_rows_alone
from hypothesis import given, settings
from hypothesis import strategies as st
from providers import PROVIDERS, run, same, target

from fd_core.api.tensor import from_numpy
from fd_core.layers.rotary import rotary_table

everywhere = pytest.mark.parametrize("provider", PROVIDERS)
OP = "fused_rotary_position_encoding"


def normal(seed: int, shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def turned(heads: Any, positions: Any, rotary_dim: int, neox: bool) -> Any:
    """Rotation of [T, H, D] as multiplication by exp(i * angle)."""
    out = heads.astype(np.float64)
    angle = np.outer(positions, 10000.0 ** (-np.arange(0, rotary_dim, 2) / rotary_dim))[:, None, :]
    half = rotary_dim // 2
    pairs = (
        (np.s_[..., :half], np.s_[..., half:rotary_dim])
        if neox
        else (np.s_[..., 0:rotary_dim:2], np.s_[..., 1:rotary_dim:2])
    )
    z = (out[pairs[0]] + 1j * out[pairs[1]]) * np.exp(1j * angle)
    out[pairs[0]], out[pairs[1]] = z.real, z.imag
    return out


@everywhere
@pytest.mark.parametrize("shape", [(4, 2, 2, 6, 4, False), (3, 2, 2, 8, 8, True), (10, 2, 2, 4, 4, False)])
def test_public_fixture_sizes(provider: str, shape: tuple[Any, ...]) -> None:
    tokens, q_heads, k_heads, size, rotary_dim, neox = shape
    q, k = normal(0, (tokens, q_heads, size)), normal(1, (tokens, k_heads * size))
    positions = np.arange(tokens, dtype=np.int32)[::-1].copy()
    table = rotary_table({}, rotary_dim, 16)
    given_ = {"position_ids": positions, "cos_sin_cache": table, "head_size": size, "is_neox": neox}
    got = run(provider, OP, query=q, key=k, **given_)
    np.testing.assert_allclose(got["query"], turned(q, positions, rotary_dim, neox), atol=2e-6)
    heads = k.reshape(tokens, k_heads, size)
    np.testing.assert_allclose(
        got["key"].reshape(heads.shape), turned(heads, positions, rotary_dim, neox), atol=2e-6
    )


@everywhere
@pytest.mark.parametrize("neox", [True, False])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_slices_of_one_qkv_buffer(provider: str, neox: bool, dtype: Any) -> None:
    """q as [T, H * D] columns, k as [T, H, D] view; v between the views is not touched."""
    buffer = normal(2, (5, 8 * 64), dtype)
    positions, table = np.array([9, 0, 3, 3, 70], np.int64), rotary_table({}, 48, 71)
    whole = {"position_ids": positions, "cos_sin_cache": table, "head_size": 64, "is_neox": neox}
    want = run(provider, OP, query=buffer[:, :256].copy(), key=buffer[:, 256:384].copy(), **whole)
    shared = buffer.copy()
    q, k = from_numpy(shared[:, :256]), from_numpy(shared.reshape(5, 8, 64)[:, 4:6])
    target(provider, OP)(q, k, from_numpy(positions), from_numpy(table), 64, neox)
    assert same(shared[:, :256], want["query"])
    assert same(shared[:, 256:384], want["key"])
    assert same(shared[:, 384:], buffer[:, 384:])


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.tuples(st.integers(0, 4), st.integers(1, 3), st.integers(1, 3)),
    half=st.integers(0, 40),
    rest=st.integers(0, 5),
    neox=st.booleans(),
    kind=st.sampled_from(TYPES),
    narrow=st.booleans(),
)
def test_kernel_agrees(
    sizes: tuple[int, int, int], half: int, rest: int, neox: bool, kind: Any, narrow: bool
) -> None:
    tokens, q_heads, k_heads = sizes
    size = max(1, 2 * half + rest)
    table = normal(half, (7, 2 * half)).clip(-1, 1).astype(kind if narrow else np.float32)
    inputs = {
        "query": normal(3, (tokens, q_heads * size), kind),
        "key": normal(4, (tokens, k_heads, size), kind),
        "position_ids": np.random.default_rng(5).integers(0, 7, tokens),
    }
    assert_agrees(OP, **inputs, cos_sin_cache=table, head_size=size, is_neox=neox)


@everywhere
@pytest.mark.parametrize("neox", [True, False])
def test_rows_alone_and_in_a_batch(provider: str, neox: bool) -> None:
    tokens = {"query": normal(6, (6, 3 * 40), TYPES[1]), "key": normal(7, (6, 40), TYPES[1])}
    tokens["position_ids"] = np.array([5, 0, 5, 2, 30, 1], np.int32)
    table = rotary_table({}, 40, 31)
    assert_rows_alone(provider, OP, **tokens, cos_sin_cache=table, head_size=40, is_neox=neox)


@everywhere
def test_more_tokens_than_the_compatible_entry_takes(provider: str) -> None:
    tokens = 65537
    inputs = {"query": np.ones((tokens, 2), np.float32), "key": np.ones((tokens, 2), np.float32)}
    positions, table = np.zeros(tokens, np.int32), np.array([[0.0, 1.0]], np.float32)
    got = run(
        provider, OP, **inputs, position_ids=positions, cos_sin_cache=table, head_size=2, is_neox=True
    )
    assert (got["query"] == [-1, 1]).all()


@everywhere
@pytest.mark.parametrize("bad", [-1, 8])
def test_positions_outside_the_table_are_named(provider: str, bad: int) -> None:
    x, positions = np.ones((3, 8), np.float32), np.array([0, 7, bad], np.int32)
    match = rf"position_ids: want indices in \[0, 8\), have {bad} at position 2"
    sizes = {"cos_sin_cache": rotary_table({}, 8, 8), "head_size": 8, "is_neox": True}
    assert_refused(provider, OP, ValueError, match, query=x, key=x, position_ids=positions, **sizes)


X, IDS = np.ones((2, 8), np.float32), np.zeros(2, np.int32)
GOOD: dict[str, Any] = {"query": X, "key": X, "position_ids": IDS, "head_size": 8, "is_neox": True}
GOOD["cos_sin_cache"] = np.ones((4, 8), np.float32)
BAD = [
    (ValueError, r"key: want size 2 in dimension 0, have \[3, 8\]", {"key": np.ones((3, 8), np.float32)}),
    (ValueError, r"query: want rows of a multiple of head_size 8", {"query": np.ones((2, 12), np.float32)}),
    (TypeError, r"key: want dtype float32, have float16", {"key": X.astype(np.float16)}),
    (
        TypeError,
        r"cos_sin_cache: want dtype float32, have float16",
        {"cos_sin_cache": np.ones((4, 8), np.float16)},
    ),
    (ValueError, r"cos_sin_cache: want an even .*\[4, 7\]", {"cos_sin_cache": np.ones((4, 7), np.float32)}),
    (
        ValueError,
        r"cos_sin_cache: want an even .* <= head_size 8",
        {"cos_sin_cache": np.ones((4, 10), np.float32)},
    ),
    (TypeError, r"position_ids: want dtype int32 or int64", {"position_ids": IDS.astype(np.float32)}),
    (ValueError, r"head_size: want > 0, have 0", {"head_size": 0}),
]


@pytest.mark.parametrize(("error", "match", "change"), BAD)
def test_bad_arguments_are_refused(error: type[Exception], match: str, change: dict[str, Any]) -> None:
    assert_refused("fd-cpu", OP, error, rf"{OP}\." + match, **{**GOOD, **change})


# -- tables of given positions -------------------------------------------------------------------------


@everywhere
@pytest.mark.parametrize("sizes", [(2, 4, 8, 0), (1, 2, 2, 0), (2, 4, 8, 3)])
def test_get_rotary_embedding(provider: str, sizes: tuple[int, int, int, int]) -> None:
    """The public fixture's sizes and its formula."""
    batch, length, dim, prompt = sizes
    ids = np.zeros((batch, length), np.int32)
    positions = np.tile(np.arange(length + prompt, dtype=np.float32), (batch, 1))
    inputs = {"input_ids": ids, "position_ids": positions, "prompt_num": prompt}
    shape = np.zeros(dim, np.int32)
    out = run(provider, "fused_get_rotary_embedding", **inputs, head_dim_shape_tensor=shape)["out"]
    assert out.shape == (2, batch, 1, length, dim)
    for s in range(length):
        for h in range(dim):
            angle = (s + prompt) * 10000.0 ** (-(h - h % 2) / dim)
            want = [np.cos(angle), np.sin(angle)]
            np.testing.assert_allclose(out[:, -1, 0, s, h], want, rtol=1e-5, atol=1e-6)


@everywhere
def test_get_rotary_embedding_refuses(provider: str) -> None:
    inputs: dict[str, Any] = {
        "input_ids": np.zeros((1, 4), np.int32),
        "position_ids": np.zeros((1, 5), np.float32),
    }
    name, even, odd = "fused_get_rotary_embedding", np.zeros(4, np.int32), np.zeros(3, np.int32)
    few = r"position_ids: want at least 4 \+ prompt_num 2 columns"
    assert_refused(provider, name, ValueError, few, **inputs, head_dim_shape_tensor=even, prompt_num=2)
    length = r"head_dim_shape_tensor: want an even length, have 3"
    assert_refused(provider, name, ValueError, length, **inputs, head_dim_shape_tensor=odd, prompt_num=0)


# -- packed qkv ----------------------------------------------------------------------------------------


@everywhere
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_neox_rope_embedding(provider: str, dtype: Any) -> None:
    """General tables: the second half of the head uses its own entries. v is a copy."""
    qkv = normal(8, (6, 3 * 2 * 36), dtype)
    cos, sin = normal(9, (2, 6, 1, 36))
    tables = {"cos_emb": cos, "sin_emb": sin, "num_heads": 2, "head_dim": 36}
    got = run(provider, "fused_neox_rope_embedding", qkv=qkv, **tables)
    parts = qkv.reshape(6, 3, 2, 36).astype(np.float64)
    for i, name in enumerate("qk"):
        half = np.concatenate([-parts[:, i, :, 18:], parts[:, i, :, :18]], -1)
        want = parts[:, i] * cos + half * sin
        np.testing.assert_allclose(
            got[name].astype(np.float64), want, rtol=1e-2, atol=1e-6 if dtype == np.float32 else 1e-2
        )
    assert same(got["v"], qkv.reshape(6, 3, 2, 36)[:, 2])


@everywhere
def test_neox_rope_embedding_rows(provider: str) -> None:
    qkv, (cos, sin) = normal(10, (4, 3 * 40), TYPES[2]), normal(11, (2, 4, 1, 40))
    name, sizes = "fused_neox_rope_embedding", {"num_heads": 1, "head_dim": 40}
    batch = run(provider, name, qkv=qkv, cos_emb=cos, sin_emb=sin, **sizes)
    for r in range(4):
        one = {"qkv": qkv[r : r + 1], "cos_emb": cos[r : r + 1], "sin_emb": sin[r : r + 1]}
        alone = run(provider, name, **one, **sizes)
        assert all(same(alone[p][0], batch[p][r]) for p in "qkv")


def test_neox_rope_embedding_refuses() -> None:
    table = np.ones((2, 1, 8), np.float32)
    good: dict[str, Any] = {"qkv": np.ones((2, 24), np.float32), "cos_emb": table, "sin_emb": table}
    good |= {"num_heads": 1, "head_dim": 8}
    name = "fused_neox_rope_embedding"
    assert_refused("fd-cpu", name, ValueError, r"qkv: want size 48", **{**good, "num_heads": 2})
    narrow = {**good, "sin_emb": table.astype(np.float16)}
    assert_refused("fd-cpu", name, TypeError, r"sin_emb: want dtype float32", **narrow)
    short = {**good, "cos_emb": table[:1]}
    assert_refused("fd-cpu", name, ValueError, r"cos_emb: want size 2 in dimension 0", **short)
