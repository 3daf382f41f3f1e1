"""append_attention: equal to its parts, one result per row, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from agreement import TYPES, assert_agrees, assert_refused
from hypothesis import given, settings
from hypothesis import strategies as st
from providers import PROVIDERS, run, same

from fd_core.ops.attention.append_attention import random_inputs, rotary_table

OP = "append_attention"
everywhere = pytest.mark.parametrize("provider", PROVIDERS)


def made(queries: Any, past: Any, dtype: Any = np.float32, seed: int = 0, **more: Any) -> dict[str, Any]:
    return random_inputs(np.random.default_rng(seed), np.dtype(dtype), queries, past, **more)


@everywhere
def test_without_options_it_is_a_write_and_paged_attention(provider: str) -> None:
    inputs = made([3, 0, 1], [0, 9, 30], table="none", padding=2)
    got = run(provider, OP, **inputs)
    q, k, v = np.split(inputs["qkv"][:4].reshape(4, 8, 64), [4, 6], axis=1)
    table = inputs["block_tables"]
    caches = {name: inputs[name].copy() for name in ("key_cache", "value_cache")}
    for token, (s, p) in enumerate([(0, 0), (0, 1), (0, 2), (2, 30)]):
        for cache, rows in zip(caches.values(), (k, v), strict=True):
            cache[table[s, p // 16], :, p % 16] = rows[token]
    parts = {name: cache.transpose(0, 2, 1, 3) for name, cache in caches.items()}
    parts |= {"q": q, "cu_seqlens_q": inputs["cu_seqlens_q"], "block_table": table, "sinks": None}
    parts |= {"seq_lens": np.array([3, 9, 31], np.int32), "scale": 0.125, "window": 0, "soft_cap": 0.0}
    want = run("oracle", "paged_attention", **parts)["out"].reshape(4, -1)
    np.testing.assert_allclose(got["out"][:4], want, rtol=3e-5, atol=1e-5)
    assert not got["out"][4:].any()
    assert all(same(got[name], cache) for name, cache in caches.items())
    assert same(got["qkv"], inputs["qkv"])


@everywhere
@pytest.mark.parametrize("neox", [False, True])
def test_rotation_depends_on_distances_alone(provider: str, neox: bool) -> None:
    """A prompt that starts at position 5 (behind a window) attends like one that starts at 0."""
    here = made([6], [0], heads=(2, 1), dim=16, neox=neox, window=3)
    there = made([6], [5], heads=(2, 1), dim=16, neox=neox, window=3) | {"qkv": here["qkv"]}
    a, b = (run(provider, OP, **x)["out"] for x in (here, there))
    np.testing.assert_allclose(a[2:], b[2:], rtol=1e-4, atol=1e-5)  # the first see what lies before


@everywhere
def test_rotation_of_one_key(provider: str) -> None:
    for neox, first, second in ((False, 2, 3), (True, 1, 5)):
        inputs = made([1], [7], heads=(1, 1), dim=8, neox=neox)
        inputs["rotary_embs"] = table = rotary_table(8, 4)
        got = run(provider, OP, **inputs)["key_cache"][inputs["block_tables"][0, 0], 0, 7]
        x, y = inputs["qkv"][0, 8 + first], inputs["qkv"][0, 8 + second]
        cos, sin = table[:, 0, 7, 0, 1]
        np.testing.assert_allclose(got[[first, second]], [x * cos - y * sin, y * cos + x * sin], rtol=1e-5)


@everywhere
def test_the_norm_follows_the_rotation(provider: str) -> None:
    inputs = made([1], [7], heads=(1, 1), dim=8, norm=True)
    plain = inputs | {"q_norm_weight": None, "k_norm_weight": None}
    place = (inputs["block_tables"][0, 0], 0, 7)
    rotated = run(provider, OP, **plain)["key_cache"][place]
    want = rotated * inputs["k_norm_weight"] / np.sqrt(np.mean(rotated**2) + 1e-6)
    np.testing.assert_allclose(run(provider, OP, **inputs)["key_cache"][place], want, rtol=1e-5)


@everywhere
def test_the_bias_is_added_first(provider: str) -> None:
    inputs = made([3], [4], bias=True)
    added = inputs | {"qkv": inputs["qkv"] + inputs["qkv_bias"], "qkv_bias": None}
    assert same(run(provider, OP, **inputs)["out"], run(provider, OP, **added)["out"])


@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 280)), min_size=1, max_size=3),
    heads=st.sampled_from([(1, 1), (4, 2), (7, 1)]),
    dim=st.sampled_from([16, 24, 64, 128]),
    table=st.sampled_from(["full", "none"]),
    neox=st.booleans(),
    norm=st.booleans(),
    bias=st.booleans(),
    sinks=st.booleans(),
    window=st.sampled_from([0, 1, 40]),
    kind=st.sampled_from(TYPES),
    seed=st.integers(0, 2**31),
)
def test_kernel_agrees(shape: Any, kind: Any, seed: int, **more: Any) -> None:
    queries, past = map(list, zip(*shape, strict=True))
    assert_agrees(OP, **made(queries, past, kind, seed, **more))


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_more_speculative_tokens_change_no_row(kind: Any) -> None:
    five = made([5], [300], kind, norm=True)
    two = five | {"qkv": five["qkv"][:2], "seq_lens_this_time": np.array([2], np.int32)}
    two["cu_seqlens_q"] = np.array([0, 2], np.int32)
    assert same(run("fd-cpu", OP, **two)["out"], run("fd-cpu", OP, **five)["out"][:2])


BASE = made([3, 2], [0, 30], norm=True, sinks=True)
TABLE = np.where(np.arange(BASE["block_tables"].shape[1]) == 1, -1, BASE["block_tables"]).astype(np.int32)


@everywhere
@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"block_tables": TABLE}, r"block_tables: sequence 1, block 1: want .* have -1"),
        ({"cu_seqlens_q": np.array([0, 3, 4], np.int32)}, r"cu_seqlens_q: sequence 1"),
        ({"rotary_embs": rotary_table(31, 32)}, r"rotary_embs: sequence 1: want 32 positions, have 31"),
    ],
)
def test_bad_lists_are_refused(provider: str, changes: dict[str, Any], match: str) -> None:
    assert_refused(provider, OP, ValueError, match, **BASE | changes)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"k_norm_weight": None}, ValueError, r"k_norm_weight: want both norm weights or none"),
        (
            {"rotary_embs": rotary_table(40, 16)},
            ValueError,
            r"rotary_embs: want half of 64 columns",
        ),
        ({"key_cache": BASE["key_cache"].astype(np.float16)}, TypeError, r"key_cache: want dtype float32"),
        ({"sinks": np.zeros(4, np.float16)}, TypeError, r"sinks: want dtype float32"),
        ({"sliding_window": -2}, ValueError, r"sliding_window: want 0 \(all\) or more"),
        ({"seq_lens_decoder": np.array([0, -1], np.int32)}, ValueError, r"seq_lens_decoder: sequence 1"),
        (
            {"seq_lens_decoder": np.array([0, 30], np.int64)},
            TypeError,
            r"seq_lens_decoder: want dtype",
        ),
    ],
)
def test_bad_arguments_are_refused(changes: dict[str, Any], error: Any, match: str) -> None:
    assert_refused("fd-cpu", OP, error, match, **BASE | changes)
