"""Activation memory: views are made once, stay at one address, and never leave the buffer."""

from __future__ import annotations

import numpy as np
import pytest

from fd_core.api import dtype as dt
from fd_core.host.reference import ReferencePlatform
from fd_core.layers.buffers import MAX_VIEWS, Buffer
from fd_core.layers.scratch import Scratch

PLATFORM = ReferencePlatform()


def test_rows_are_views_made_once() -> None:
    buffer = Buffer.empty(PLATFORM, (10, 4), dt.float32)
    assert buffer.rows(3) is buffer.rows(3)
    assert buffer.rows(3).shape == (3, 4)
    assert buffer.rows(3).ptr == buffer.rows(10).ptr == buffer.tensor.ptr


def test_too_many_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="want at most 4 rows, have 5"):
        Buffer.empty(PLATFORM, (4, 2), dt.float32).rows(5)


def test_kept_views_are_bounded() -> None:
    buffer = Buffer.empty(PLATFORM, (3 * MAX_VIEWS, 1), dt.float32)
    for n in range(3 * MAX_VIEWS):
        assert buffer.rows(n).shape == (n, 1)
    assert len(buffer._views) == MAX_VIEWS


def test_heads_are_strided_columns() -> None:
    buffer = Buffer.empty(PLATFORM, (5, 12), dt.float32)
    values = buffer.tensor.numpy()
    values[...] = np.arange(60).reshape(5, 12)
    heads = buffer.heads(4, 2, 4).rows(3)
    assert heads.shape == (3, 2, 4)
    np.testing.assert_array_equal(heads.numpy().reshape(3, 8), values[:3, 4:])
    heads.numpy()[2, 1, 3] = -1
    assert values[2, 11] == -1


def test_derived_buffers_are_shared() -> None:
    buffer = Buffer.empty(PLATFORM, (5, 12), dt.float32)
    assert buffer.heads(4, 2, 4) is buffer.heads(4, 2, 4)
    assert buffer.heads(0, 1, 4) is not buffer.heads(4, 1, 4)
    assert buffer.heads(0, 3, 4).flat().rows(2).shape == (2, 12)


def test_the_tokens_may_come_last_or_be_merged() -> None:
    ids = Buffer.empty(PLATFORM, (6, 2), dt.int32).columns()
    assert ids.rows(5).shape == (2, 5)
    assert ids.rows(5).is_contiguous
    with pytest.raises(ValueError, match="want at most 6 rows, have 7"):
        ids.rows(7)
    permuted = Buffer.empty(PLATFORM, (6, 2, 3), dt.float32).merged()
    assert permuted.rows(5).shape == (10, 3)
    assert permuted.rows(0).shape == (0, 3)


@pytest.mark.parametrize(("start", "dim"), [(2, 4), (0, 5)])
def test_heads_on_no_boundary_are_refused(start: int, dim: int) -> None:
    with pytest.raises(ValueError, match=f"want multiples of {dim}"):
        Buffer.empty(PLATFORM, (5, 12), dt.float32).heads(start, 1, dim)


def test_scratch_is_shared_between_equal_requests() -> None:
    scratch = Scratch(PLATFORM, 8)
    first = scratch.buffer("qkv", (4,), dt.float32)
    assert scratch.buffer("qkv", (4,), dt.float32) is first
    assert scratch.buffer("qkv", (6,), dt.float32) is not first
    assert scratch.buffer("mixed", (4,), dt.float32) is not first
    assert scratch.nbytes == 8 * 4 * (4 + 6 + 4)
