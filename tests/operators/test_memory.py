"""Block copies within and between caches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from agreement import assert_agrees, assert_refused
from hypothesis import given, settings
from hypothesis import strategies as st
from providers import PROVIDERS, run, same, target

from fd_core.api.tensor import from_numpy

everywhere = pytest.mark.parametrize("provider", PROVIDERS)
CACHE = np.arange(2 * 6 * 5, dtype=np.int64).reshape(2, 6, 5)


def ids(*values: int) -> Any:
    return np.array(values, np.int64)


@everywhere
def test_copy_by_hand(provider: str) -> None:
    pairs = {"src_block_ids": ids(0, 0, 5), "dst_block_ids": ids(1, 3, 2)}
    got = run(provider, "copy_blocks", cache=CACHE, block_dim=1, **pairs)["cache"]
    want = CACHE.copy()
    want[:, 1], want[:, 3], want[:, 2] = CACHE[:, 0], CACHE[:, 0], CACHE[:, 5]
    assert same(got, want)


@everywhere
def test_swap_out_and_in_returns_the_blocks(provider: str) -> None:
    device, host = CACHE.reshape(12, 5), np.zeros((4, 5), np.int64)
    out = {"src_block_ids": ids(7, 2, 11), "dst_block_ids": ids(0, 3, 1)}
    pool = run(provider, "swap_blocks", src=device, dst=host, **out)["dst"]
    assert same(pool[[0, 3, 1]], device[[7, 2, 11]])
    assert not pool[2].any()
    back = {"src_block_ids": ids(0, 3, 1), "dst_block_ids": ids(7, 2, 11)}
    blank = np.zeros_like(device)
    restored = run(provider, "swap_blocks", src=pool, dst=blank, **back)["dst"]
    assert same(restored[[7, 2, 11]], device[[7, 2, 11]])


@everywhere
def test_swap_of_strided_blocks(provider: str) -> None:
    """Keys of an interleaved cache [blocks, 2, ...]: the values between them stay."""
    both, host = CACHE.reshape(6, 2, 5).copy(), np.full((3, 5), -1, np.int64)
    call = (from_numpy(host), from_numpy(both[:, 0]), from_numpy(ids(2)), from_numpy(ids(4)))
    before = both[:, 1].copy()
    target(provider, "swap_blocks")(*call)
    assert (both[4, 0] == -1).all()
    assert same(both[:, 1], before)


@settings(max_examples=25, deadline=None)
@given(
    outer=st.integers(1, 3),
    order=st.permutations(range(7)),
    split=st.integers(1, 6),
    inner=st.integers(0, 40),
    kind=st.sampled_from([np.uint8, np.float16, np.int64]),
)
def test_kernels_agree(outer: int, order: list[int], split: int, inner: int, kind: Any) -> None:
    cache = np.random.default_rng(inner).integers(0, 99, (outer, 7, inner)).astype(kind)
    sources, destinations = order[:split], order[split:]
    pairs = {
        "src_block_ids": ids(*(sources[i % split] for i in range(len(destinations)))),
        "dst_block_ids": ids(*destinations),
    }
    assert_agrees("copy_blocks", cache=cache, block_dim=1, **pairs)
    assert_agrees("swap_blocks", src=cache[0], dst=np.zeros_like(cache[0]), **pairs)


BAD = [
    (ids(0, 6), ids(1, 2), r"src_block_ids: want indices in \[0, 6\), have 6 at position 1"),
    (ids(0, 1), ids(2, -1), r"dst_block_ids: want indices in \[0, 6\), have -1 at position 1"),
    (ids(0, 1), ids(2, 2), r"dst_block_ids: want each block once, have 2 again at position 1"),
    (ids(0, 1), ids(2), r"dst_block_ids: want "),
]


@everywhere
@pytest.mark.parametrize(("src", "dst", "match"), BAD)
def test_bad_lists_are_refused(provider: str, src: Any, dst: Any, match: str) -> None:
    pairs = {"src_block_ids": src, "dst_block_ids": dst}
    blocks = CACHE.reshape(6, 10)
    assert_refused(
        provider, "copy_blocks", ValueError, "copy_blocks." + match, cache=blocks, block_dim=0, **pairs
    )
    assert_refused(
        provider, "swap_blocks", ValueError, "swap_blocks." + match, src=blocks, dst=blocks, **pairs
    )


@everywhere
def test_chains_are_refused(provider: str) -> None:
    pairs = {"src_block_ids": ids(0, 1), "dst_block_ids": ids(1, 2)}
    match = "src_block_ids: want no block that is also a destination"
    assert_refused(provider, "copy_blocks", ValueError, match, cache=CACHE, block_dim=1, **pairs)


@everywhere
@pytest.mark.parametrize("dim", [-1, 3])
def test_block_dim_outside_is_refused(provider: str, dim: int) -> None:
    pairs = {"src_block_ids": ids(0), "dst_block_ids": ids(1)}
    match = rf"copy_blocks\.block_dim: want a dimension of .*have {dim}"
    assert_refused(provider, "copy_blocks", ValueError, match, cache=CACHE, block_dim=dim, **pairs)


def test_one_memory_for_both_is_refused() -> None:
    cache, one = from_numpy(CACHE.copy()), from_numpy(ids(0))
    with pytest.raises(ValueError, match=r"swap_blocks\.dst: want memory apart from src"):
        target("fd-cpu", "swap_blocks")(cache, cache, one, from_numpy(ids(1)))


def test_unequal_blocks_and_types_are_refused() -> None:
    pairs = {"src_block_ids": ids(0), "dst_block_ids": ids(0)}
    narrow, other = np.zeros((2, 4), np.int64), np.zeros((2, 5), np.int32)
    call = ("fd-cpu", "swap_blocks")
    assert_refused(
        *call, ValueError, r"dst: want size 5 .*have \[2, 4\]", src=CACHE[0], dst=narrow, **pairs
    )
    assert_refused(*call, TypeError, r"dst: want dtype int64, have int32", src=CACHE[0], dst=other, **pairs)
