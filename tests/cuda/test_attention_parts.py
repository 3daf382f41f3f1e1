"""Few query tokens over long caches: keys of a tile of rows are parted among blocks and merged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("fd_cuda")
from fd_cuda import driver, library
from fd_cuda.stream import use_stream

from fd_core.api import dtype as dt
from fd_core.host.session import Session
from fd_core.ops.attention.paged_attention import paged_attention, random_inputs
from fd_core.testkit.check import assert_close, run_oracle
from tests.cuda.gpu import gpu_session
from tests.cuda.test_paged_attention import KERNELS, bits, longest, run

device = pytest.mark.device("cuda")
half = pytest.mark.parametrize("dtype", [dt.bfloat16.numpy(), dt.float16.numpy()], ids=str)
#: Of one kernel for every row, and of the choice among them.
EXPORTS = ("paged_attention_sm90", "paged_attention_step")
#: (heads, head dimension, block size)
SHAPES = [((8, 2), 128, 64), ((4, 4), 64, 16), ((7, 1), 128, 16), ((16, 2), 72, 8), ((5, 1), 256, 16)]
OPTIONS: list[dict[str, Any]] = [{}, {"window": 700}, {"window": 40}, {"sinks": True}, {"soft_cap": 3.0}]
#: Queries and cached keys of a sequence.
SEQUENCE = st.tuples(
    st.one_of(st.integers(0, 9), st.sampled_from([1, 16, 31, 32, 33, 64, 130])),
    st.one_of(st.integers(0, 3000), st.sampled_from([0, 127, 128, 1023, 1024, 2048, 6000])),
)


@pytest.fixture(scope="module")
def session() -> Session:
    return gpu_session("paged_attention_step")


def step_of(
    steps: list[tuple[int, int]], seed: int, dtype: Any, shape: Any, **options: Any
) -> dict[str, Any]:
    heads, dim, block_size = shape
    queries, past = [n for n, _ in steps], [p for _, p in steps]
    rng = np.random.default_rng(seed)
    return random_inputs(rng, dtype, queries, past, heads=heads, dim=dim, block_size=block_size, **options)


def check(session: Session, name: str, inputs: dict[str, Any]) -> None:
    more = KERNELS[name](longest(inputs))
    got = run(session, name, inputs, *more)
    assert_close(paged_attention, "out", got, run_oracle(paged_attention, inputs)["out"])
    assert bits(got) == bits(run(session, name, inputs, *more))


@device
@half
@given(
    steps=st.lists(SEQUENCE, min_size=1, max_size=5),
    shape=st.sampled_from(SHAPES),
    options=st.sampled_from(OPTIONS),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_any_mix_of_sequences_is_right_and_repeats(
    session: Session,
    dtype: Any,
    steps: list[tuple[int, int]],
    shape: Any,
    options: dict[str, Any],
    seed: int,
) -> None:
    check(session, "paged_attention_step", step_of(steps, seed, dtype, shape, **options))


@device
@half
@pytest.mark.parametrize("name", EXPORTS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(
    "steps",
    [
        [(16, 4080)],
        [(64, 3000)],
        [(200, 1900)],
        [(1000, 500)],  # tiles of one sequence that see different numbers of keys
        [(100, 5000), (700, 0)],  # one long tile among many short ones
        [(3, 2000), (16, 4000), (1, 100), (0, 5), (40, 900)],
        [(16, 300 * i) for i in range(12)],
    ],
    ids=str,
)
def test_parts_are_merged(
    session: Session, name: str, steps: list[tuple[int, int]], options: dict[str, Any], dtype: Any
) -> None:
    check(session, name, step_of(steps, 5, dtype, SHAPES[0], **options))


@device
@half
@pytest.mark.parametrize("name", EXPORTS)
def test_maxima_may_rise_from_part_to_part(session: Session, name: str, dtype: Any) -> None:
    """Weights of the first parts vanish beside the last one's in some rows, in others not."""
    inputs = step_of([(24, 4000)], 9, dtype, SHAPES[0])
    for position in range(int(inputs["seq_lens"][0])):
        block = inputs["block_table"][0, position // 64]
        inputs["key_cache"][block, position % 64] *= dtype.type(1 + position / 400)
    inputs["q"][::3] *= dtype.type(4)
    check(session, name, inputs)


@device
@pytest.mark.parametrize("name", EXPORTS)
def test_a_captured_step_parts_the_keys_of_its_lists(session: Session, name: str) -> None:
    """Recorded where nothing is parted; replayed over other numbers of queries and lengths."""
    kind, put = dt.bfloat16.numpy(), session.platform.from_host
    few = step_of([(16, 40), (16, 0)], 1, kind, SHAPES[0])
    many = step_of([(30, 5000), (2, 700)], 2, kind, SHAPES[0])
    few["block_table"] = np.zeros_like(many["block_table"])
    few["key_cache"], few["value_cache"] = (np.zeros_like(many[k]) for k in ("key_cache", "value_cache"))
    placed = {k: put(v) if isinstance(v, np.ndarray) else v for k, v in few.items()}
    out, more = put(np.zeros_like(many["q"])), KERNELS[name](32)
    kernel = library.function(name)
    graph = session.platform.capture(lambda: kernel(*placed.values(), *more, out))
    for inputs in (many, few, many):
        for key, value in inputs.items():
            if isinstance(value, np.ndarray):
                placed[key].copy_from(put(value))
        graph.replay()
        session.platform.synchronize()
    want = run_oracle(paged_attention, many)["out"]
    assert_close(paged_attention, "out", session.platform.to_host(out), want)


@device
@pytest.mark.parametrize("name", EXPORTS)
def test_two_streams_part_keys_at_once(session: Session, name: str) -> None:
    """Blocks of both launches run beside each other; each waits for parts of its own only."""
    kind, put = dt.bfloat16.numpy(), session.platform.from_host
    steps = [step_of([(20, 3000), (9, 900)], seed, kind, SHAPES[0]) for seed in (5, 6)]
    more = KERNELS[name](20)
    alone = [run(session, name, step, *more) for step in steps]
    kernel = library.function(name)
    placed = [[put(v) if isinstance(v, np.ndarray) else v for v in step.values()] for step in steps]
    outs = [put(np.zeros_like(step["q"])) for step in steps]
    session.platform.enter()
    streams = [driver.handle("cuStreamCreate", driver.NON_BLOCKING) for _ in steps]
    for _ in range(50):
        for stream, values, out in zip(streams, placed, outs, strict=True):
            with use_stream(session.device.device, stream):
                kernel(*values, *more, out)
    session.platform.synchronize()
    for stream in streams:
        driver.call("cuStreamDestroy_v2", stream)
    for out, want in zip(outs, alone, strict=True):
        assert bits(session.platform.to_host(out)) == bits(want)
