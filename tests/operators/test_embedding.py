"""embedding: rows by id, converted, and bad ids refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from agreement import TYPES, assert_agrees, assert_refused, assert_rows_alone
from hypothesis import given, settings
from hypothesis import strategies as st
from providers import PROVIDERS, run, same, target

from fd_core.api.tensor import from_numpy

everywhere = pytest.mark.parametrize("provider", PROVIDERS)
TABLE = np.random.default_rng(0).standard_normal((9, 37)).astype(np.float32)


@everywhere
@pytest.mark.parametrize("ids", [np.int32, np.int64])
@pytest.mark.parametrize("source", TYPES, ids=str)
@pytest.mark.parametrize("into", TYPES, ids=str)
def test_every_pair_of_types(provider: str, ids: Any, source: Any, into: Any) -> None:
    wanted, table = np.array([8, 0, 0, 3], ids), TABLE.astype(source)
    out = np.zeros((4, 37), into)
    target(provider, "embedding")(from_numpy(wanted), from_numpy(table), from_numpy(out))
    assert same(out, table[[8, 0, 0, 3]].astype(into))


@settings(max_examples=20, deadline=None)
@given(ids=st.lists(st.integers(0, 8), max_size=12), width=st.integers(1, 37), kind=st.sampled_from(TYPES))
def test_kernel_agrees(ids: list[int], width: int, kind: Any) -> None:
    table = TABLE[:, :width].astype(kind)
    assert_agrees("embedding", ids=np.array(ids, np.int64), weight=table)


@everywhere
def test_rows_alone_and_in_a_batch(provider: str) -> None:
    assert_rows_alone(provider, "embedding", ids=np.array([3, 1, 4, 1, 5], np.int32), weight=TABLE)


@everywhere
@pytest.mark.parametrize("bad", [-1, 9, 2**40])
def test_ids_outside_are_named(provider: str, bad: int) -> None:
    match = rf"embedding\.ids: want indices in \[0, 9\), have {bad} at position 2"
    ids = np.array([1, 8, bad, -7], np.int64)
    assert_refused(provider, "embedding", ValueError, match, ids=ids, weight=TABLE)


@everywhere
def test_no_ids_of_an_empty_table(provider: str) -> None:
    ids, weight = np.zeros(0, np.int64), np.zeros((0, 4), np.float32)
    assert run(provider, "embedding", ids=ids, weight=weight)["out"].shape == (0, 4)


def test_ids_of_another_type_are_refused() -> None:
    match = r"embedding\.ids: want dtype int32 or int64, have float32"
    assert_refused("fd-cpu", "embedding", TypeError, match, ids=np.zeros(2, np.float32), weight=TABLE)
