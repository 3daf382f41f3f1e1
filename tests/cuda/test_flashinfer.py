"""The FlashInfer backend without a GPU: what it tells FlashInfer of a step, and when it declines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fd_cuda")
import fd_cuda.flashinfer as backend
from fd_cuda.arch import simulated_devices
from fd_cuda.flashinfer import FlashInferAttention, pages_of
from hypothesis import given
from hypothesis import strategies as st

from fd_core.api import dtype as dt
from fd_core.api.attention import AttentionSpec
from fd_core.api.verdict import ReasonCode

SPEC = AttentionSpec(8, 2, 128, 128**-0.5, dt.bfloat16, dt.bfloat16, 64)
steps = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 70)), min_size=1, max_size=6)


@given(steps, st.integers(1, 17))
def test_pages_name_every_key_of_the_step_once(work: list[tuple[int, int]], size: int) -> None:
    """Read back as FlashInfer does: page ids[i] of the sequence, whole but for the last."""
    queries, lens = (np.array(column, np.int32) for column in zip(*work, strict=True))
    lens = np.maximum(lens, queries)
    table = np.arange(len(work) * 80, dtype=np.int32).reshape(len(work), 80)
    cu = np.concatenate([[0], np.cumsum(queries)]).astype(np.int32)
    step = pages_of(cu, lens, table, size)
    assert np.array_equal(step.queries, cu)
    for s, (count, length) in enumerate(zip(queries, lens, strict=True)):
        mine = step.ids[step.pages[s] : step.pages[s + 1]]
        keys = (len(mine) - 1) * size + step.last[s] if len(mine) else 0
        assert keys == (length if count else 0)
        assert np.array_equal(mine, table[s, : len(mine)])
        assert not len(mine) or 1 <= step.last[s] <= size
    assert {step.pages.dtype, step.ids.dtype, step.last.dtype} == {np.dtype(np.int32)}


class TestSupports:
    def codes(
        self,
        monkeypatch: pytest.MonkeyPatch,
        missing: tuple[str, ...] = (),
        arch: str = "sm_90",
        **change: Any,
    ) -> list[ReasonCode]:
        monkeypatch.setattr(backend, "find_spec", lambda name: None if name in missing else object())
        info = next(info for _, info in simulated_devices() if info.arch == arch)
        return [r.code for r in FlashInferAttention.supports(replace(SPEC, **change), info).reasons]

    def test_serves_where_it_is_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.codes(monkeypatch) == []

    def test_names_the_package_that_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.codes(monkeypatch, ("flashinfer",)) == [ReasonCode.NOT_INSTALLED]
        info = next(info for _, info in simulated_devices() if info.arch == "sm_90")
        text = str(FlashInferAttention.supports(SPEC, info))
        assert "want flashinfer, have no such module; fix: pip install fd-cuda[flashinfer]" in text

    @pytest.mark.parametrize(
        ("change", "code"),
        [
            ({"head_dim": 80}, ReasonCode.HEAD_DIM),
            ({"dtype": dt.float32, "cache_dtype": dt.float32}, ReasonCode.DTYPE),
            ({"cache_dtype": dt.float16}, ReasonCode.DTYPE),
            ({"sinks": True}, ReasonCode.FEATURE),
            ({"arch": "sm_75"}, ReasonCode.ARCH),
        ],
    )
    def test_declines_with_the_reason(
        self, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], code: ReasonCode
    ) -> None:
        assert self.codes(monkeypatch, **change) == [code]
