"""Attention over caches of codes on the GPU: each kernel by itself, in every layout, what spoils what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("fd_cuda")
from fd_cuda import library

from fd_core.api import dtype as dt
from fd_core.host.session import Session
from fd_core.ops.attention.paged_attention import paged_attention, random_inputs
from fd_core.ops.kv_cache.reshape_and_cache_flash import LARGEST_CODE, SCALE_BYTES, code_rows
from fd_core.testkit.check import assert_close, run_oracle
from tests.cuda.gpu import gpu_session
from tests.cuda.test_paged_attention import SMALL_CHUNKS, bits, longest, rows_that_see, slot_of

pytestmark = pytest.mark.device("cuda")
half = pytest.mark.parametrize("dtype", [dt.bfloat16.numpy(), dt.float16.numpy()], ids=str)
#: Exports, and what they take beside the op's arguments.
KERNELS: dict[str, Callable[[int], tuple[int, ...]]] = {
    "paged_attention_plain": lambda most: (),
    "paged_attention_kv8": lambda most: (most, 0, 0, 0, 0),
    "paged_attention_kv8_tiles": lambda most: (),
    "paged_attention_step": lambda most: (most,),
}
every = pytest.mark.parametrize("kernel", KERNELS)
both = pytest.mark.parametrize("codes", LARGEST_CODE)


@pytest.fixture(scope="module")
def session() -> Session:
    return gpu_session("paged_attention_step")


def place(session: Session, value: Any) -> Any:
    """On the device; an array that is head-major in memory stays so."""
    if not isinstance(value, np.ndarray):
        return value
    if value.ndim == 4 and value.transpose(0, 2, 1, 3).flags.c_contiguous:
        return session.platform.from_host(value.transpose(0, 2, 1, 3)).permute(0, 2, 1, 3)
    return session.platform.from_host(value)


def run(session: Session, name: str, inputs: dict[str, Any], *more: int) -> Any:
    """The output, NaN where nothing was written."""
    try:
        kernel = library.function(name)
    except (AttributeError, RuntimeError) as error:
        pytest.skip(str(error))
    out = place(session, np.full(inputs["q"].shape, np.nan, np.float32).astype(inputs["q"].dtype))
    kernel(*(place(session, value) for value in inputs.values()), *more, out)
    session.platform.synchronize()
    return session.platform.to_host(out)


def attended(session: Session, kernel: str, inputs: dict[str, Any]) -> Any:
    return run(session, kernel, inputs, *KERNELS[kernel](longest(inputs)))


def step(
    seed: int, dtype: Any, queries: list[int], past: list[int], codes: str = "int8", **more: Any
) -> dict[str, Any]:
    return random_inputs(np.random.default_rng(seed), dtype, queries, past, codes=codes, **more)


def head_major(cache: Any) -> Any:
    """The same [blocks, block_size, heads, row], heads outside of slots in memory."""
    return np.ascontiguousarray(cache.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)


@st.composite
def steps(draw: st.DrawFn) -> dict[str, Any]:
    """Steps of all shapes: groups, pages, windows, caps, sinks; either memory order of the pools."""
    count = draw(st.integers(1, 4))
    queries = draw(st.lists(st.sampled_from([0, 1, 1, 2, 5, 40]), min_size=count, max_size=count))
    past = draw(st.lists(st.integers(0, 400), min_size=count, max_size=count))
    kv_heads, group = draw(st.sampled_from([(1, 1), (2, 4), (1, 7), (3, 1), (2, 16)]))
    inputs = step(
        draw(st.integers(0, 99)),
        draw(st.sampled_from([dt.bfloat16, dt.float16, dt.float32])).numpy(),
        queries,
        past,
        draw(st.sampled_from(sorted(LARGEST_CODE))),
        heads=(kv_heads * group, kv_heads),
        dim=draw(st.sampled_from([8, 40, 64, 128, 200, 256, 264])),
        block_size=draw(st.sampled_from([1, 5, 16, 48, 64])),
        window=draw(st.sampled_from([0, 0, 1, 33, 128])),
        soft_cap=draw(st.sampled_from([0.0, 0.0, 5.0])),
        sinks=draw(st.booleans()),
    )
    if draw(st.booleans()):
        inputs |= {name: head_major(inputs[name]) for name in ("key_cache", "value_cache")}
    return inputs


@given(steps())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_step_is_the_oracles(session: Session, inputs: dict[str, Any]) -> None:
    """The op's own tolerance: codes widen exactly, and weights times scales round as weights do."""
    want = run_oracle(paged_attention, inputs)["out"]
    assert_close(paged_attention, "out", attended(session, "paged_attention_step", inputs), want)


@half
@both
@every
@pytest.mark.parametrize("page", [16, 64, 20])
@pytest.mark.parametrize("order", [np.ascontiguousarray, head_major], ids=["slots", "heads"])
def test_every_kernel_is_right_alone(
    session: Session, kernel: str, codes: str, page: int, order: Any, dtype: Any
) -> None:
    options = {"heads": (8, 2), "dim": 128, "block_size": page}
    inputs = step(3, dtype, [1, 0, 5, 33, 1], [600, 7, 250, 0, 33], codes, **options)
    inputs |= {name: order(inputs[name]) for name in ("key_cache", "value_cache")}
    want = run_oracle(paged_attention, inputs)["out"]
    assert_close(paged_attention, "out", attended(session, kernel, inputs), want)


@half
@pytest.mark.parametrize("options", [{}, {"window": 100}, {"sinks": True}, {"soft_cap": 3.0}], ids=str)
def test_chunks_of_a_sequence_are_merged(session: Session, options: dict[str, Any], dtype: Any) -> None:
    """Several chunks for each sequence, ends inside of one, rows that see nothing of the first."""
    inputs = step(0, dtype, [1, 3, 1, 0, 2], [1000, 64, 191, 5, 400], dim=128, **options)
    got = run(session, "paged_attention_kv8", inputs, longest(inputs), *SMALL_CHUNKS)
    assert_close(paged_attention, "out", got, run_oracle(paged_attention, inputs)["out"])


@half
@every
def test_blocks_take_many_tiles_each(session: Session, kernel: str, dtype: Any) -> None:
    queries, past = [300, 1, 0, 133, 90, 600], [0, 64, 3, 500, 2000, 17]
    inputs = step(11, dtype, queries, past, heads=(16, 8), dim=128, block_size=64)
    got = attended(session, kernel, inputs)
    assert_close(paged_attention, "out", got, run_oracle(paged_attention, inputs)["out"])
    assert bits(got) == bits(attended(session, kernel, inputs))


@half
@both
@every
@pytest.mark.parametrize("size", [1e-4, 300.0])
def test_values_of_any_size_keep_their_precision(
    session: Session, kernel: str, codes: str, dtype: Any, size: float
) -> None:
    """Weights times scales leave float16's range both ways; the error stays that of a weight.

    2^-9 (bfloat16; float16 2^-12, and its subnormals' step) of a mean of |value| below `size`, doubled.
    """
    inputs = step(5, dtype, [1, 2], [2000, 500], codes, heads=(8, 2), dim=128, block_size=64)
    floats = np.random.default_rng(6).standard_normal((*inputs["value_cache"].shape[:3], 128))
    inputs["value_cache"] = code_rows((size * floats).astype(np.float32), codes)
    want = run_oracle(paged_attention, {**inputs, "q": inputs["q"].astype(np.float32)})["out"]
    error = np.abs(attended(session, kernel, inputs).astype(np.float32) - want).max()
    assert error <= size * 2**-8 if dtype == dt.bfloat16.numpy() else size * 2**-11 + 2**-24


#: Steps whose tiles hold rows that see different keys: queries, cached keys, options.
UNEVEN: dict[str, tuple[list[int], list[int], dict[str, Any]]] = {
    "prefill": ([150], [0], {"dim": 128, "heads": (8, 2), "block_size": 64}),
    "chunk": ([70, 3], [333, 90], {"dim": 128, "heads": (4, 4)}),
    "window": ([90], [300], {"dim": 64, "heads": (4, 2), "window": 50}),
    "few": ([4, 2], [200, 31], {"dim": 128, "heads": (4, 2), "block_size": 5}),
    "wide": ([40], [10], {"dim": 72, "heads": (7, 1), "sinks": True}),
}
uneven = pytest.mark.parametrize("shape", UNEVEN.values(), ids=UNEVEN)


def spoil(cache: Any, where: tuple[int, ...]) -> None:
    """A row as the writer leaves one that held a NaN or an infinity."""
    row = np.full(cache.shape[-1] - SCALE_BYTES, np.nan, np.float32)
    cache[where] = code_rows(row, cache.dtype.name)


@half
@every
@uneven
def test_a_value_of_nan_spoils_only_rows_that_see_it(
    session: Session, shape: Any, kernel: str, dtype: Any
) -> None:
    queries, past, options = shape
    inputs = step(7, dtype, queries, past, **options)
    want, cache = run_oracle(paged_attention, inputs)["out"], inputs["value_cache"]
    group = inputs["q"].shape[1] // cache.shape[2]
    for offset in {0, 1, queries[0] // 3, queries[0] // 2, queries[0] - 2, queries[0] - 1}:
        position = past[0] + offset
        where = (*slot_of(inputs, position), 0)
        kept = cache[where].copy()
        spoil(cache, where)
        got = attended(session, kernel, inputs)
        cache[where] = kept
        spoilt = np.zeros(got.shape[:2], bool)
        spoilt[rows_that_see(inputs, position), :group] = True
        assert spoilt.any()
        assert np.isnan(got[spoilt].astype(np.float32)).all()
        assert_close(paged_attention, "out", got[~spoilt], want[~spoilt])


@half
@every
@uneven
def test_a_token_of_nan_spoils_only_itself_and_later_ones(
    session: Session, shape: Any, kernel: str, dtype: Any
) -> None:
    """Its query, key and value, as a model that overflows at this token leaves them."""
    queries, past, options = shape
    inputs = step(7, dtype, queries, past, **options)
    want, token = run_oracle(paged_attention, inputs)["out"], queries[0] // 2
    inputs["q"][token] = np.nan
    for cache in (inputs["key_cache"], inputs["value_cache"]):
        for head in range(cache.shape[2]):
            spoil(cache, (*slot_of(inputs, past[0] + token), head))
    got = attended(session, kernel, inputs)
    spoilt = rows_that_see(inputs, past[0] + token)
    assert spoilt[token]
    assert np.isnan(got[spoilt].astype(np.float32)).all()
    assert_close(paged_attention, "out", got[~spoilt], want[~spoilt])


@both
@every
@pytest.mark.parametrize("shape", [(64, 64), (40, 16), (128, 20)], ids=str)
def test_bytes_that_nobody_sees_change_nothing(
    session: Session, kernel: str, codes: str, shape: tuple[int, int]
) -> None:
    """Codes and scales that no writer leaves, NaN among them, in slots and blocks beside those in use."""
    dim, page = shape
    options = {"heads": (4, 2), "dim": dim, "block_size": page}
    inputs = step(19, dt.bfloat16.numpy(), [1, 5, 40], [70, 333, 9], codes, **options)
    want = attended(session, kernel, inputs)
    for name in ("key_cache", "value_cache"):
        rows = inputs[name].view(np.int8)
        scales = np.ascontiguousarray(rows[..., -SCALE_BYTES:]).view(np.float32)[..., 0]
        assert np.isnan(scales).any()
        rows[np.isnan(scales)] = np.array([0x7F, -1] * (rows.shape[-1] // 2), np.int8)
    assert bits(attended(session, kernel, inputs)) == bits(want)


@every
def test_rows_do_not_depend_on_each_other(session: Session, kernel: str) -> None:
    """Bit for bit, when other rows' maxima rise at other keys and other sequences are shorter."""
    kind = dt.bfloat16.numpy()
    inputs = step(17, kind, [64, 1, 1], [700, 300, 90], heads=(8, 2), dim=128, block_size=64)
    loud = {**inputs, "q": inputs["q"].copy(), "seq_lens": inputs["seq_lens"].copy()}
    loud["q"][1:64:2] *= 30
    loud["seq_lens"][1:] = [12, 70]
    quiet, other = (attended(session, kernel, i) for i in (inputs, loud))
    assert bits(quiet[:64:2]) == bits(other[:64:2])
    assert bits(quiet[1:64:2]) != bits(other[1:64:2])


@pytest.mark.parametrize("queries", [1, 70])
def test_block_ids_outside_the_pool_read_no_memory_of_others(session: Session, queries: int) -> None:
    inputs = step(2, dt.float16.numpy(), [queries] * 2, [300, 200], dim=128, heads=(8, 2))
    want = run_oracle(paged_attention, inputs)["out"]
    inputs["block_table"][1, :3] = [-1, 1 << 30, -(1 << 31)]
    got = attended(session, "paged_attention_step", inputs)
    assert_close(paged_attention, "out", got[:queries], want[:queries])


def test_rows_without_room_for_their_scale_are_refused(session: Session) -> None:
    inputs = step(2, dt.bfloat16.numpy(), [1], [30], dim=64)
    inputs["key_cache"] = inputs["key_cache"][..., :64].copy()
    with pytest.raises(ValueError, match=r"paged_attention_step\.key_cache: .*68.*64"):
        attended(session, "paged_attention_step", inputs)
