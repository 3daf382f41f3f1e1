"""The FlashInfer backend: what it tells FlashInfer of a step, when it declines, and on a GPU where
FlashInfer is installed its results. FlashInfer compiles a kernel at its first use, which takes minutes
each; with FLASHINFER_DISABLE_JIT=1 those that are not compiled yet are skipped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
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
from fd_core.api.attention import AttentionBatch, AttentionSpec, KVCache
from fd_core.api.platform import DeviceError
from fd_core.api.verdict import ReasonCode
from fd_core.engine.build import build_engine
from fd_core.engine.config import EngineConfig
from fd_core.engine.request import EngineRequest, SamplingParams
from fd_core.host.session import Session, open_session
from fd_core.ops.attention.paged_attention import paged_attention, random_inputs
from fd_core.testkit import model_checks
from fd_core.testkit.check import assert_close, run_oracle
from fd_core.testkit.harness import Harness, build
from tests.cuda.gpu import gpu_session

SPEC = AttentionSpec(8, 2, 128, 128**-0.5, dt.bfloat16, dt.bfloat16, 64)
on_device = pytest.mark.device("cuda")
#: New queries and cached keys of each sequence.
STEPS = {
    "prefill": ([37], [0]),
    "chunked": ([19], [300]),
    "decode": ([1, 1, 1], [0, 40, 511]),
    "mixed": ([1, 0, 5, 133], [600, 7, 250, 0]),
    "long": ([1, 300], [5000, 900]),
}
VARIANTS: dict[str, tuple[dt.DType, dict[str, Any]]] = {
    "bfloat16": (dt.bfloat16, {}),
    "float16": (dt.float16, {}),
    "dim64": (dt.bfloat16, {"dim": 64}),
    "window": (dt.bfloat16, {"window": 33}),
    "soft-cap": (dt.bfloat16, {"soft_cap": 5.0}),
}
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


@pytest.fixture(scope="module")
def session() -> Session:
    pytest.importorskip("flashinfer")
    return gpu_session()


def skip_uncompiled(error: Exception) -> None:
    if type(error).__name__ == "MissingJITCacheError":
        pytest.skip("FlashInfer may not compile this kernel (FLASHINFER_DISABLE_JIT)")


def spec_of(inputs: dict[str, Any], kind: dt.DType) -> AttentionSpec:
    heads, dim = inputs["q"].shape[1:]
    options = {"window": inputs["window"] or None, "soft_cap": inputs["soft_cap"] or None}
    block_size, kv_heads = inputs["key_cache"].shape[1:3]
    return AttentionSpec(heads, kv_heads, dim, inputs["scale"], kind, kind, block_size, **options)


def batch_of(session: Session, inputs: dict[str, Any]) -> AttentionBatch:
    cu, lens = inputs["cu_seqlens_q"], inputs["seq_lens"]
    lists = {k: session.platform.from_host(inputs[k]) for k in ("cu_seqlens_q", "seq_lens", "block_table")}
    slots = session.platform.from_host(np.full(cu[-1], -1, np.int64))
    longest = int(np.diff(cu).max())
    return AttentionBatch(
        int(cu[-1]), len(lens), slot_mapping=slots, max_query_len=longest, max_seq_len=max(lens), **lists
    )


@on_device
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("block_size", [16, 64])
def test_results_are_the_oracles(session: Session, variant: str, step: str, block_size: int) -> None:
    """NaN in every slot that no query sees; rows behind the step's are left alone."""
    kind, options = VARIANTS[variant]
    given = {"heads": (8, 2), "dim": 128, "block_size": block_size, **options}
    inputs = random_inputs(np.random.default_rng(5), kind.numpy(), *STEPS[step], **given)
    put, more = session.platform.from_host, 3
    pools = (np.ascontiguousarray(inputs[n].transpose(0, 2, 1, 3)) for n in ("key_cache", "value_cache"))
    cache = KVCache(*(put(pool) for pool in pools))
    padded = np.concatenate([inputs["q"], inputs["q"][:more]])
    out = put(np.full(padded.shape, 7, padded.dtype))
    attention = FlashInferAttention(spec_of(inputs, kind), session.device, session.ops)
    try:
        plan = attention.plan(batch_of(session, inputs))
    except Exception as error:
        skip_uncompiled(error)
        raise
    attention.attend(plan, put(padded), cache, out)
    session.platform.synchronize()
    got = session.platform.to_host(out)
    want = run_oracle(paged_attention, inputs)["out"]
    assert_close(paged_attention, "out", got[: len(want)], want)
    assert (got[len(want) :] == 7).all()


CONFIG = {**model_checks.CONFIG, "head_dim": 128, "torch_dtype": "bfloat16"}


@pytest.fixture
def folder(session: Session, tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


@on_device
@pytest.mark.parametrize("check", model_checks.CHECKS)
def test_a_model_agrees_with_the_oracles(session: Session, folder: Path, check: str) -> None:
    parts = SimpleNamespace(
        platform=session.platform,
        device=session.device,
        ops=session.ops,
        attention_backends=[FlashInferAttention],
        quant_methods=session.quant_methods,
    )
    both = (build(folder, p, load_format="dummy") for p in (parts, open_session("reference")))
    model_checks.CHECKS[check](*map(Harness, both), model_checks.TOLERANCE["bfloat16"])


class TestEngine:
    def made(self, folder: Path, graphs: bool) -> Any:
        options = {"load_format": "dummy", "max_num_seqs": 4, "max_num_batched_tokens": 64}
        config = EngineConfig(
            model=str(folder),
            platform="cuda",
            attention_backend="FLASHINFER",
            enable_graphs=graphs,
            **options,
        )
        return build_engine(config).engine

    @on_device
    def test_requests_come_to_their_end(self, folder: Path) -> None:
        engine = self.made(folder, graphs=False)
        greedy = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)
        for name, length in (("a", 5), ("b", 100), ("c", 30)):
            request = EngineRequest(request_id=name, prompt_token_ids=[3] * length, params=greedy)
            engine.add_request(request)
        news = [output for _ in range(40) if engine.has_work for output in engine.step()]
        made = {name: sum(len(o.token_ids) for o in news if o.request_id == name) for name in "abc"}
        assert made == {"a": 12, "b": 12, "c": 12}

    @on_device
    def test_graphs_are_refused_with_the_way_out(self, folder: Path) -> None:
        with pytest.raises(DeviceError, match="--no-graphs"):
            self.made(folder, graphs=True)
