"""Attention on the GPU beyond the kit: each kernel by itself, what the backend promises, wrong lists."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fd_cuda")
from fd_cuda import driver, library
from fd_cuda.arch import simulated_devices
from fd_cuda.attention import CudaAttention, packed
from fd_cuda.stream import use_stream

from fd_core.api import dtype as dt
from fd_core.api.attention import AttentionSpec
from fd_core.api.device import Device
from fd_core.api.verdict import ReasonCode
from fd_core.host.session import Session
from fd_core.ops.attention.paged_attention import paged_attention, random_inputs
from fd_core.testkit.check import assert_close, run_oracle
from tests.cuda.gpu import gpu_session

device = pytest.mark.device("cuda")
half = pytest.mark.parametrize("dtype", [dt.bfloat16.numpy(), dt.float16.numpy()], ids=str)
#: Exports that run one kernel for every row, and what they take beside the op's arguments.
KERNELS: dict[str, Callable[[int], tuple[int, ...]]] = {
    "paged_attention_plain": lambda most: (),
    "paged_attention_split": lambda most: (most, 0, 0, 0, 0),
    "paged_attention_decode": lambda most: (most, 0, 0, 0),
    "paged_attention_tiles": lambda most: (),
    "paged_attention_sm90": lambda most: (),
    "paged_attention_step": lambda most: (most,),
}
#: One block a multiprocessor, two stages, chunks of 64 keys, at least three of them a sequence.
SMALL_CHUNKS = (2, 1, 64, 3)
#: Quantised caches have kernels and tests of their own.
CASES = [c for c in paged_attention.cases if not c.bench and not c.id.startswith(("int8", "float8"))]
SPEC = AttentionSpec(8, 2, 128, 128**-0.5, dt.bfloat16, dt.bfloat16, 64)


@pytest.fixture(scope="module")
def session() -> Session:
    return gpu_session()


def longest(inputs: dict[str, Any]) -> int:
    return int(np.diff(inputs["cu_seqlens_q"]).max(initial=0))


def run(session: Session, name: str, inputs: dict[str, Any], *more: int) -> Any:
    """The output, NaN where nothing was written."""
    try:
        kernel = library.function(name)
    except (AttributeError, RuntimeError) as error:
        pytest.skip(str(error))
    put = session.platform.from_host
    placed = [put(v) if isinstance(v, np.ndarray) else v for v in inputs.values()]
    out = put(np.full(inputs["q"].shape, np.nan, np.float32).astype(inputs["q"].dtype))
    try:
        kernel(*placed, *more, out)
    except ValueError as error:
        if "not for these" in str(error):
            pytest.skip(str(error))
        raise
    session.platform.synchronize()
    return session.platform.to_host(out)


def bits(array: Any) -> bytes:
    return bytes(np.ascontiguousarray(array).tobytes())


@device
@half
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_every_kernel_is_right_alone(session: Session, kernel: str, case: Any, dtype: Any) -> None:
    inputs = case.args(np.random.default_rng(3), dtype)
    got = run(session, kernel, inputs, *KERNELS[kernel](longest(inputs)))
    assert_close(paged_attention, "out", got, run_oracle(paged_attention, inputs)["out"])


@device
@half
@pytest.mark.parametrize("options", [{}, {"window": 100}, {"sinks": True}, {"soft_cap": 3.0}], ids=str)
def test_chunks_of_a_sequence_are_merged(session: Session, options: dict[str, Any], dtype: Any) -> None:
    """Several chunks for each sequence, ends inside of one, rows that see nothing of the first."""
    inputs = random_inputs(
        np.random.default_rng(0), dtype, [1, 3, 1, 0, 2], [1000, 64, 191, 5, 400], dim=128, **options
    )
    got = run(session, "paged_attention_split", inputs, longest(inputs), *SMALL_CHUNKS)
    assert_close(paged_attention, "out", got, run_oracle(paged_attention, inputs)["out"])


@device
@half
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("options", [{}, {"window": 200}, {"sinks": True}, {"soft_cap": 3.0}], ids=str)
def test_decoding_in_teams_changes_no_bit(
    session: Session, options: dict[str, Any], dim: int, dtype: Any
) -> None:
    """One chunk, one team of several, several teams; sequences that are empty or have one key."""
    lengths = [1000, 64, 5, 0, 191, 513, 3000, 300, 40]
    inputs = random_inputs(
        np.random.default_rng(0), dtype, [1, 1, 0, 1, 1, 1, 1, 1, 1], lengths, dim=dim, **options
    )
    for chunk, wanted in ((64, 40), (128, 5), (256, 1), (0, 0)):
        got = run(session, "paged_attention_decode", inputs, 1, 3, chunk, wanted)
        want = run(session, "paged_attention_split", inputs, 1, 0, 0, chunk, wanted)
        assert bits(got) == bits(want)
        assert_close(paged_attention, "out", got, run_oracle(paged_attention, inputs)["out"])


@device
def test_a_row_does_not_depend_on_what_its_neighbours_hold(session: Session) -> None:
    kind, seed = dt.bfloat16.numpy(), np.random.default_rng(1)
    step = random_inputs(seed, kind, [1, 1, 1], [700, 300, 90], dim=128, heads=(8, 2))
    first = run(session, "paged_attention_step", step, 1)
    other = {**step, "seq_lens": np.array([701, 12, 70], np.int32), "q": step["q"].copy()}
    other["q"][1:] = 1
    assert bits(first[0]) == bits(run(session, "paged_attention_step", other, 1)[0])
    assert bits(first[1:]) != bits(run(session, "paged_attention_step", other, 1)[1:])


@device
def test_two_streams_at_once_have_scratch_of_their_own(session: Session) -> None:
    """Both merge partial results of many chunks; each comes out as if it were alone."""
    kind, put = dt.bfloat16.numpy(), session.platform.from_host
    steps = [
        random_inputs(
            np.random.default_rng(seed), kind, [1] * 4, [3000, 900, 2500, 1700], heads=(16, 4), dim=128
        )
        for seed in (5, 6)
    ]
    alone = [run(session, "paged_attention_step", step, 1) for step in steps]
    kernel = library.function("paged_attention_step")
    placed = [[put(v) if isinstance(v, np.ndarray) else v for v in step.values()] for step in steps]
    outs = [put(np.zeros_like(step["q"])) for step in steps]
    session.platform.enter()
    streams = [driver.handle("cuStreamCreate", driver.NON_BLOCKING) for _ in steps]
    for _ in range(50):
        for stream, values, out in zip(streams, placed, outs, strict=True):
            with use_stream(session.device.device, stream):
                kernel(*values, 1, out)
    session.platform.synchronize()
    for stream in streams:
        driver.call("cuStreamDestroy_v2", stream)
    for out, want in zip(outs, alone, strict=True):
        assert bits(session.platform.to_host(out)) == bits(want)


@device
@pytest.mark.parametrize("queries", [1, 70])
def test_block_ids_outside_the_pool_read_no_memory_of_others(session: Session, queries: int) -> None:
    """The device cannot refuse such lists; other sequences of the step are right nevertheless."""
    kind, seed = dt.float16.numpy(), np.random.default_rng(2)
    step = random_inputs(seed, kind, [queries, queries], [300, 200], dim=128, heads=(8, 2))
    want = run_oracle(paged_attention, step)["out"]
    step["block_table"][1, :3] = [-1, 1 << 30, -(1 << 31)]
    got = run(session, "paged_attention_step", step, queries)
    assert_close(paged_attention, "out", got[:queries], want[:queries])


#: Steps whose tiles hold rows that see different keys: queries, cached keys, options.
UNEVEN: dict[str, tuple[list[int], list[int], dict[str, Any]]] = {
    "prefill": ([150], [0], {"dim": 128, "heads": (8, 2), "block_size": 64}),
    "chunk": ([70, 3], [333, 90], {"dim": 128, "heads": (4, 4)}),
    "window": ([90], [300], {"dim": 64, "heads": (4, 2), "window": 50}),
    "few": ([4, 2], [200, 31], {"dim": 128, "heads": (4, 2)}),
    "wide": ([40], [10], {"dim": 72, "heads": (7, 1), "sinks": True}),
    "parts": ([18], [2000], {"dim": 128, "heads": (8, 2), "block_size": 64}),
}
uneven = pytest.mark.parametrize("step", UNEVEN.values(), ids=UNEVEN)
every = pytest.mark.parametrize("kernel", KERNELS)


def uneven_inputs(step: tuple[list[int], list[int], dict[str, Any]], dtype: Any) -> dict[str, Any]:
    queries, past, options = step
    return random_inputs(np.random.default_rng(7), dtype, queries, past, **options)


def slot_of(inputs: dict[str, Any], position: int) -> tuple[int, int]:
    """Where the first sequence's key at `position` lies."""
    size = inputs["key_cache"].shape[1]
    return int(inputs["block_table"][0, position // size]), position % size


def rows_that_see(inputs: dict[str, Any], position: int) -> Any:
    """bool [tokens]: the rows of the first sequence that see its key at `position`."""
    tokens, queries = np.arange(len(inputs["q"])), inputs["cu_seqlens_q"][1]
    at = inputs["seq_lens"][0] - queries + tokens
    recent = at - inputs["window"] < position if inputs["window"] else True
    return (tokens < queries) & (at >= position) & recent


@device
@half
@every
@uneven
@pytest.mark.parametrize("wild", [np.nan, np.inf, -np.inf])
def test_a_value_spoils_only_rows_that_see_it(
    session: Session, step: Any, kernel: str, dtype: Any, wild: float
) -> None:
    """One element of one key head's value: that element of these rows' heads, nothing else."""
    inputs, element = uneven_inputs(step, dtype), 5
    want = run_oracle(paged_attention, inputs)["out"]
    queries = int(inputs["cu_seqlens_q"][1])
    group = inputs["q"].shape[1] // inputs["key_cache"].shape[2]
    for offset in {0, 1, queries // 3, queries // 2, queries - 2, queries - 1}:
        position = int(inputs["seq_lens"][0]) - queries + offset
        where = (*slot_of(inputs, position), 0, element)
        kept = inputs["value_cache"][where].copy()
        inputs["value_cache"][where] = wild
        got = run(session, kernel, inputs, *KERNELS[kernel](longest(inputs)))
        inputs["value_cache"][where] = kept
        spoilt = np.zeros(got.shape, bool)
        spoilt[rows_that_see(inputs, position), :group, element] = True
        assert not np.isfinite(got[spoilt].astype(np.float32)).any()
        assert spoilt.any()
        got[spoilt] = want[spoilt]
        assert_close(paged_attention, "out", got, want)


@device
@half
@every
@uneven
def test_a_token_of_nan_spoils_only_itself_and_later_ones(
    session: Session, step: Any, kernel: str, dtype: Any
) -> None:
    """Its query, key and value, as a model that overflows at this token leaves them."""
    inputs = uneven_inputs(step, dtype)
    want = run_oracle(paged_attention, inputs)["out"]
    token = int(inputs["cu_seqlens_q"][1]) // 2
    position = int(inputs["seq_lens"][0] - inputs["cu_seqlens_q"][1]) + token
    inputs["q"][token] = np.nan
    for cache in (inputs["key_cache"], inputs["value_cache"]):
        cache[slot_of(inputs, position)] = np.nan
    got = run(session, kernel, inputs, *KERNELS[kernel](longest(inputs)))
    spoilt = rows_that_see(inputs, position)
    assert spoilt[token]
    assert np.isnan(got[spoilt].astype(np.float32)).all()
    assert_close(paged_attention, "out", got[~spoilt], want[~spoilt])


@device
@half
@every
@uneven
def test_a_query_or_key_of_nan_spoils_only_rows_that_use_it(
    session: Session, step: Any, kernel: str, dtype: Any
) -> None:
    inputs = uneven_inputs(step, dtype)
    want = run_oracle(paged_attention, inputs)["out"]
    inputs["q"][1, 0, 3] = np.nan
    position = int(inputs["seq_lens"][0]) - 1
    inputs["key_cache"][(*slot_of(inputs, position), -1, 0)] = np.nan
    got = run(session, kernel, inputs, *KERNELS[kernel](longest(inputs)))
    group = inputs["q"].shape[1] // inputs["key_cache"].shape[2]
    spoilt = np.zeros(got.shape, bool)
    spoilt[1, 0], spoilt[rows_that_see(inputs, position), -group:] = True, True
    assert np.isnan(got[spoilt].astype(np.float32)).all()
    assert_close(paged_attention, "out", got[~spoilt], want[~spoilt])


@device
@half
@every
def test_blocks_take_many_tiles_each(session: Session, kernel: str, dtype: Any) -> None:
    """More tiles than multiprocessors, of many lengths, and sequences with few or no queries between."""
    queries, past = [700, 1, 0, 333, 90, 1200], [0, 64, 3, 500, 2000, 17]
    inputs = random_inputs(
        np.random.default_rng(11), dtype, queries, past, heads=(16, 8), dim=128, block_size=64
    )
    got = run(session, kernel, inputs, *KERNELS[kernel](longest(inputs)))
    want = run_oracle(paged_attention, inputs)["out"]
    assert_close(paged_attention, "out", got, want)
    assert bits(got) == bits(run(session, kernel, inputs, *KERNELS[kernel](longest(inputs))))


@device
@half
@every
def test_maxima_may_rise_at_any_key(session: Session, kernel: str, dtype: Any) -> None:
    """Logits that grow along the keys, faster in some rows: exponents must follow, again and again."""
    inputs = random_inputs(
        np.random.default_rng(13), dtype, [100, 3], [900, 500], heads=(8, 2), dim=128, block_size=64
    )
    for position in range(int(inputs["seq_lens"][0])):
        inputs["key_cache"][slot_of(inputs, position)] *= dtype.type(1 + position / 100)
    inputs["q"][::3] *= dtype.type(4)
    got = run(session, kernel, inputs, *KERNELS[kernel](longest(inputs)))
    assert_close(paged_attention, "out", got, run_oracle(paged_attention, inputs)["out"])


@device
@every
def test_rows_of_a_tile_do_not_depend_on_each_other(session: Session, kernel: str) -> None:
    """Bit for bit, when other rows' maxima rise at other keys."""
    inputs = random_inputs(
        np.random.default_rng(17), dt.bfloat16.numpy(), [64], [700], heads=(8, 2), dim=128, block_size=64
    )
    loud = {**inputs, "q": inputs["q"].copy()}
    loud["q"][1::2] *= 30
    quiet, other = (run(session, kernel, i, *KERNELS[kernel](64)) for i in (inputs, loud))
    assert bits(quiet[::2]) == bits(other[::2])
    assert bits(quiet[1::2]) != bits(other[1::2])


class TestBackend:
    def at(self, arch: str) -> Any:
        return next(info for _, info in simulated_devices() if info.arch == arch)

    def codes(self, spec: AttentionSpec, info: Any) -> set[ReasonCode]:
        """Without those of a build that lacks kernels: what the sources support."""
        codes = {reason.code for reason in CudaAttention.supports(spec, info).reasons}
        return codes - {ReasonCode.NOT_BUILT}

    def test_serves_what_its_kernels_do(self) -> None:
        assert self.codes(SPEC, self.at("sm_90")) == set()
        odd = replace(SPEC, dtype=dt.float16, cache_dtype=dt.float16, head_dim=40, block_size=5, window=7)
        assert self.codes(odd, self.at("sm_70")) == set()
        for spec in (SPEC, replace(odd, dtype=dt.float32)):
            for codes in (dt.int8, dt.float8_e4m3fn):
                assert self.codes(replace(spec, cache_dtype=codes), self.at("sm_80")) == set()

    def test_a_build_without_its_kernels_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("FD_CUDA_LIBRARY", raising=False)
        monkeypatch.setattr(library, "FILE", library.FILE.with_name("none.so"))
        (reason,) = CudaAttention.supports(SPEC, self.at("sm_90")).reasons
        assert (reason.code, reason.have) == (ReasonCode.NOT_BUILT, "a build without kernels")
        assert "FD_CUDA_ARCHS" in reason.fix

    @pytest.mark.parametrize(
        ("change", "code"),
        [
            ({"head_dim": 60}, ReasonCode.HEAD_DIM),
            ({"head_dim": 520}, ReasonCode.HEAD_DIM),
            ({"num_heads": 9}, ReasonCode.SHAPE),
            ({"block_size": 0}, ReasonCode.SHAPE),
            ({"window": 0}, ReasonCode.SHAPE),
            ({"cache_dtype": dt.float16}, ReasonCode.DTYPE),
            ({"dtype": dt.int8}, ReasonCode.DTYPE),
        ],
    )
    def test_refuses_with_the_reason(self, change: dict[str, Any], code: ReasonCode) -> None:
        assert code in self.codes(replace(SPEC, **change), self.at("sm_90"))

    def test_rotation_and_attention_are_one_call_where_there_is_one(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Not below sm_90, and not where FD_CUDA_LIBRARY names a few kernels without it."""
        monkeypatch.setenv("FD_CUDA_LIBRARY", "some.so")
        monkeypatch.setattr(library, "function", lambda name: name)
        assert packed(self.at("sm_90")) == "rope_and_paged_attention"
        assert packed(self.at("sm_80")) is None

        def absent(name: str) -> Any:
            raise AttributeError(name)

        monkeypatch.setattr(library, "function", absent)
        assert packed(self.at("sm_90")) is None

    def test_bfloat16_begins_with_sm_80(self) -> None:
        assert self.codes(SPEC, self.at("sm_75")) == {ReasonCode.DTYPE}

    def test_other_devices_are_none_of_its_business(self) -> None:
        elsewhere = replace(self.at("sm_90"), device=Device("cpu", 0, 1))
        assert self.codes(SPEC, elsewhere) == {ReasonCode.ARCH}

    def test_pools_are_head_major(self) -> None:
        layout = CudaAttention.kv_layout(SPEC)
        assert layout.pool_shape(10) == (10, 2, 64, 128)
        assert layout.bytes_per_block == 2 * 2 * 64 * 128 * 2

    def test_rows_of_codes_have_their_scale_behind_them(self) -> None:
        layout = CudaAttention.kv_layout(replace(SPEC, cache_dtype=dt.int8))
        assert layout.pool_shape(10) == (10, 2, 64, 132)
        assert layout.bytes_per_block == 2 * 2 * 64 * 132
