"""rope_and_cache: bit for bit the three ops it stands for, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from agreement import TYPES, assert_agrees, assert_refused
from hypothesis import given, settings
from hypothesis import strategies as st
from providers import PROVIDERS, run, same

from fd_core.layers.rotary import rotary_table

everywhere = pytest.mark.parametrize("provider", PROVIDERS)
OP = "rope_and_cache"


def call(seed: int = 0, **changes: Any) -> dict[str, Any]:
    """A valid call: `changes` of its sizes, or of its arguments."""
    sizes = {"tokens": 5, "q": 3, "kv": 1, "dim": 24, "rotary": 24, "block": 4, "dtype": np.float32}
    sizes |= {k: changes.pop(k) for k in list(changes) if k in sizes}
    tokens, q, kv, dim, rotary, block, dtype = sizes.values()
    rng = np.random.default_rng(seed)
    blocks = tokens // block + 2
    slots = rng.permutation(blocks * block)[:tokens].astype(np.int64)
    slots[1::3] = -1
    pools = rng.standard_normal((2, blocks, block, kv, dim)).astype(changes.pop("cache", dtype))
    weights = rng.uniform(0.5, 1.5, (2, dim)).astype(dtype)
    return {
        "qkv": rng.standard_normal((tokens, (q + 2 * kv) * dim)).astype(dtype),
        "position_ids": rng.integers(0, 9, tokens).astype(np.int32),
        "cos_sin_cache": rotary_table({"partial_rotary_factor": rotary / dim}, dim, 9),
        **{"q_norm_weight": weights[0], "k_norm_weight": weights[1], "eps": 1e-6},
        **{"key_cache": pools[0], "value_cache": pools[1], "slot_mapping": slots, "is_neox": True},
    } | changes


def in_turn(provider: str, given_: dict[str, Any]) -> dict[str, Any]:
    """The same through the three ops."""
    heads, dim = given_["key_cache"].shape[2:]
    qkv, kv_size = given_["qkv"], heads * dim
    q_size = qkv.shape[1] - 2 * kv_size
    if given_["q_norm_weight"] is not None:
        weights = {k: given_[k] for k in ("q_norm_weight", "k_norm_weight", "eps")}
        sizes = {"q_size": q_size, "kv_size": kv_size, "head_dim": dim}
        qkv = run(provider, "qk_rmsnorm_fused", qkv=qkv, **weights, **sizes)["qkv"]
    q, k, v = (np.ascontiguousarray(x) for x in np.split(qkv, [q_size, q_size + kv_size], axis=1))
    rest = {"position_ids": given_["position_ids"], "cos_sin_cache": given_["cos_sin_cache"]}
    style = {"head_size": dim, "is_neox": given_["is_neox"]}
    turned = run(provider, "fused_rotary_position_encoding", query=q, key=k, **rest, **style)
    key, value = (x.reshape(len(qkv), heads, dim) for x in (turned["key"], v))
    pools = {name: given_[name] for name in ("key_cache", "value_cache", "slot_mapping")}
    mode = {"k_scale": None, "v_scale": None, "kv_cache_dtype": "auto"}
    cached = run(provider, "reshape_and_cache_flash", key=key, value=value, **pools, **mode)
    return cached | {"qkv": np.concatenate([turned["query"], turned["key"], v], axis=1)}


def assert_same(provider: str, given_: dict[str, Any]) -> None:
    got, want = run(provider, OP, **given_), in_turn(provider, given_)
    for name in ("qkv", "key_cache", "value_cache"):
        assert same(got[name], want[name]), name


@everywhere
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("neox", [True, False])
@pytest.mark.parametrize("norm", [True, False])
def test_equals_the_three_ops(provider: str, dtype: Any, neox: bool, norm: bool) -> None:
    none = {} if norm else {"q_norm_weight": None, "k_norm_weight": None}
    assert_same(provider, call(dtype=dtype, is_neox=neox, **none))
    assert_same(provider, call(dtype=dtype, is_neox=neox, rotary=8, dim=40, kv=2, **none))


@everywhere
@pytest.mark.parametrize("cache", TYPES[1:], ids=str)
def test_float32_into_narrow_pools(provider: str, cache: Any) -> None:
    assert_same(provider, call(cache=cache))


@given(
    st.integers(0, 9),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from([8, 16, 24, 64]),
    st.sampled_from([1, 3, 16]),
    st.booleans(),
    st.sampled_from(TYPES),
    st.data(),
)
@settings(max_examples=40, deadline=None)
def test_kernel_agrees(
    tokens: int, q: int, kv: int, dim: int, block: int, neox: bool, dtype: Any, data: Any
) -> None:
    rotary = 2 * data.draw(st.integers(1, dim // 2))
    sizes = {"tokens": tokens, "q": q, "kv": kv, "dim": dim, "rotary": rotary, "block": block}
    assert_agrees(OP, **call(dtype=dtype, is_neox=neox, **sizes))


@everywhere
def test_strided_rows_and_head_major_pools(provider: str) -> None:
    given_ = call(kv=2)
    wide = np.full((5, given_["qkv"].shape[1] + 3), 7, np.float32)
    wide[:, :-3] = given_["qkv"]
    flat = run(provider, OP, **given_)
    keys = np.ascontiguousarray(given_["key_cache"].swapaxes(1, 2)).swapaxes(1, 2)
    given_ |= {"qkv": wide[:, :-3], "key_cache": keys}
    for name in ("qkv", "key_cache", "value_cache"):
        assert np.array_equal(run(provider, OP, **given_)[name], flat[name]), name


BAD = [
    ({"slot_mapping": np.array([0, 1, 2, 3, 12])}, r"slot_mapping: .*want (a slot|slots) below 12"),
    ({"position_ids": np.array([0, 1, 9, 3, 4])}, r"position_ids: want indices in \[0, 9\), have 9"),
    ({"cos_sin_cache": np.zeros((9, 26), np.float32)}, "cos_sin_cache: want an even rotary dimension"),
    ({"cos_sin_cache": np.zeros((9, 5), np.float32)}, "cos_sin_cache: want an even rotary dimension"),
    ({"k_norm_weight": None}, "k_norm_weight: want both weights or neither, have one"),
    ({"qkv": np.zeros((5, 100), np.float32)}, "qkv: want .*heads of 24"),
]


@everywhere
@pytest.mark.parametrize(("changes", "match"), BAD, ids=[next(iter(c)) for c, _ in BAD])
def test_refused_before_anything_is_written(provider: str, changes: Any, match: str) -> None:
    assert_refused(provider, OP, ValueError, f"{OP}.{match}", **call(**changes))
