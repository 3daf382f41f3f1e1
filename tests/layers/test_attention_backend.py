"""Core's attention backend over its two ops, and the choice among backends."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fd_core.api import dtype as dt
from fd_core.api.attention import AttentionBatch, AttentionSpec, KVCache
from fd_core.api.device import HOST, DeviceInfo
from fd_core.api.tensor import Tensor, TensorSpec, empty_host, from_numpy
from fd_core.api.verdict import YES, Reason, ReasonCode, Verdict
from fd_core.host.errors import UnsupportedOpError
from fd_core.host.oracle import oracle_target
from fd_core.layers.attention_backend import PagedAttention
from fd_core.layers.attention_select import explained, select_attention, select_backend
from fd_core.ops.catalogue import find

DEVICE = DeviceInfo(HOST, "a device", "an arch", 0, 0)
SPEC = AttentionSpec(6, 2, 16, 0.25, dt.float32, dt.float32, 4)
OPS = ("reshape_and_cache_flash", "paged_attention")


def oracles() -> Any:
    return SimpleNamespace(**{name: oracle_target(find(name)) for name in OPS})


def compiled() -> Any:
    library = pytest.importorskip("fd_cpu.library", reason="fd-cpu is not installed")
    try:
        return SimpleNamespace(**{name: getattr(library, name) for name in OPS})
    except RuntimeError as error:
        pytest.skip(str(error))


def pools(spec: AttentionSpec, blocks: int) -> KVCache:
    layout = PagedAttention.kv_layout(spec)
    made = [empty_host(TensorSpec(layout.pool_shape(blocks), layout.dtype)) for _ in range(2)]
    for pool in made:
        pool.numpy()[...] = np.nan
    return KVCache(*made)


def batch(queries: list[int], past: list[int], table: Any, size: int) -> AttentionBatch:
    slots = [
        table[s][p // size] * size + p % size
        for s, (n, begin) in enumerate(zip(queries, past, strict=True))
        for p in range(begin, begin + n)
    ]
    lengths = np.array([n + p for n, p in zip(queries, past, strict=True)], np.int32)
    arrays = (np.cumsum([0, *queries], dtype=np.int32), lengths, np.array(table, np.int32))
    lists = (from_numpy(array) for array in (*arrays, np.array(slots, np.int64)))
    return AttentionBatch(sum(queries), len(queries), *lists, max(queries), int(lengths.max()))


def step(backend: PagedAttention, cache: KVCache, b: AttentionBatch, qkv: Any, **more: Any) -> Any:
    """Column slices of one packed projection go in, as the layers pass them."""
    heads, groups, dim = backend.spec.num_heads, backend.spec.num_kv_heads, backend.spec.head_dim
    packed = from_numpy(qkv)

    def columns(first: int, count: int) -> Tensor:
        ptr, strides = packed.ptr + 4 * first * dim, (qkv.shape[1], dim, 1)
        return Tensor(ptr, (len(qkv), count, dim), dt.float32, packed.storage, strides)

    out = empty_host(TensorSpec((len(qkv), heads, dim), dt.float32))
    q, k, v = columns(0, heads), columns(heads, groups), columns(heads + groups, groups)
    backend.run(backend.plan(b), q, k, v, cache, out, **more)
    return out.numpy()


@pytest.mark.parametrize("ops", [oracles, compiled])
def test_two_steps_equal_one(ops: Any) -> None:
    backend = PagedAttention(SPEC, DEVICE, ops())
    qkv = np.random.default_rng(0).standard_normal((11, 10 * 16)).astype(np.float32)
    table = [[5, 0, 3]]
    whole = step(backend, pools(SPEC, 6), batch([11], [0], table, 4), qkv)
    cache = pools(SPEC, 6)
    first = step(backend, cache, batch([7], [0], table, 4), qkv[:7])
    rest = step(backend, cache, batch([4], [7], table, 4), qkv[7:])
    np.testing.assert_allclose(np.concatenate([first, rest]), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ops", [oracles, compiled])
def test_window_cap_and_sinks_reach_the_op(ops: Any) -> None:
    qkv = np.random.default_rng(0).standard_normal((5, 10 * 16)).astype(np.float32)
    values = qkv[:, 8 * 16 :].reshape(5, 2, 1, 16).repeat(3, axis=2).reshape(5, 6, 16)
    b = batch([5], [0], [[1, 0]], 4)
    own = PagedAttention(replace(SPEC, window=1), DEVICE, ops())
    np.testing.assert_allclose(step(own, pools(SPEC, 2), b, qkv), values, rtol=1e-6)
    flat = PagedAttention(replace(SPEC, soft_cap=1e-6), DEVICE, ops())
    means = np.cumsum(values, axis=0) / np.arange(1, 6)[:, None, None]
    np.testing.assert_allclose(step(flat, pools(SPEC, 2), b, qkv), means, rtol=1e-4, atol=1e-5)
    sinks = from_numpy(np.full(6, 1e4, np.float32))
    drowned = PagedAttention(SPEC, DEVICE, ops())
    assert not step(drowned, pools(SPEC, 2), b, qkv, sinks=sinks).any()


@pytest.mark.parametrize(("codes", "coarse"), [(dt.int8, 1 / 254), (dt.float8_e4m3fn, 1 / 28)], ids=str)
def test_a_cache_of_codes_rounds_what_it_holds(codes: dt.DType, coarse: float) -> None:
    """One key: its value comes back, off by half a step of the codes of its row's largest element."""
    spec = replace(SPEC, cache_dtype=codes)
    layout, backend = PagedAttention.kv_layout(spec), PagedAttention(spec, DEVICE, oracles())
    assert layout.pool_shape(9) == (9, 2, 4, 16 + 4)
    assert layout.bytes_per_block == 2 * 2 * 4 * (16 + 4)
    cache = KVCache(*(empty_host(TensorSpec(layout.pool_shape(2), codes)) for _ in range(2)))
    qkv = np.random.default_rng(0).standard_normal((1, 10 * 16)).astype(np.float32)
    assert backend.destination(batch([1], [0], [[1]], 4), cache) is None
    got = step(backend, cache, batch([1], [0], [[1]], 4), qkv).reshape(2, 3, 16)
    values = qkv[0, 8 * 16 :].reshape(2, 1, 16)
    error = np.abs(got - values).max(axis=-1) / np.abs(values).max(axis=-1)
    assert (error <= coarse * 1.001).all()
    assert error.any()


def test_layout_is_head_major() -> None:
    layout = PagedAttention.kv_layout(replace(SPEC, cache_dtype=dt.bfloat16))
    assert layout.pool_shape(9) == (9, 2, 4, 16)
    assert layout.bytes_per_block == 2 * 2 * 4 * 16 * 2
    assert layout.dtype is dt.bfloat16


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"head_dim": 20}, ReasonCode.HEAD_DIM),
        ({"head_dim": 520}, ReasonCode.HEAD_DIM),
        ({"num_kv_heads": 4}, ReasonCode.SHAPE),
        ({"block_size": 0}, ReasonCode.SHAPE),
        ({"window": 0}, ReasonCode.SHAPE),
        ({"dtype": dt.float64, "cache_dtype": dt.float64}, ReasonCode.DTYPE),
        ({"dtype": dt.bfloat16, "cache_dtype": dt.float16}, ReasonCode.DTYPE),
        ({"cache_dtype": dt.uint8}, ReasonCode.DTYPE),
    ],
)
def test_what_it_cannot_do_is_said(changes: dict[str, Any], code: ReasonCode) -> None:
    assert PagedAttention.supports(SPEC, DEVICE).ok
    verdict = PagedAttention.supports(replace(SPEC, **changes), DEVICE)
    assert code in {reason.code for reason in verdict.reasons}


def named(name: str, priority: int, verdict: Verdict = YES) -> Any:
    members = {"name": name, "priority": priority, "supports": classmethod(lambda *_: verdict)}
    return type(name, (PagedAttention,), members)


NO = Verdict((Reason(ReasonCode.ARCH, "FAST", "sm_90", "an arch"),))


def test_the_highest_priority_without_a_reason_against_it_wins() -> None:
    fast, good, plain = named("FAST", 9, NO), named("GOOD", 5), named("PLAIN", 0)
    chosen, judged = select_backend([plain, fast, good], SPEC, DEVICE, None)
    assert chosen is good
    assert [(backend.name, verdict.ok) for backend, verdict in judged] == [
        ("FAST", False),
        ("GOOD", True),
        ("PLAIN", True),
    ]
    assert select_attention(SPEC, DEVICE, [good, plain], "PLAIN") is plain
    assert explained(judged) == (
        "FAST: [ARCH] FAST: want sm_90, have an arch; GOOD: preference 5; PLAIN: preference 0"
    )


def test_a_named_backend_is_never_replaced() -> None:
    with pytest.raises(
        UnsupportedOpError, match=r"(?s)'FAST'.*FAST: \[ARCH\].*sm_90.*GOOD: \[DISABLED\]"
    ) as caught:
        select_backend([named("FAST", 9, NO), named("GOOD", 5)], SPEC, DEVICE, "FAST")
    assert caught.value.verdict is not None
    assert {reason.code for reason in caught.value.verdict.reasons} == {
        ReasonCode.ARCH,
        ReasonCode.DISABLED,
    }


def test_an_unknown_name_and_an_empty_list_are_said() -> None:
    with pytest.raises(UnsupportedOpError, match="no backend has this name"):
        select_backend([named("GOOD", 5)], SPEC, DEVICE, "GOOOD")
    with pytest.raises(UnsupportedOpError, match="none is installed"):
        select_backend([], SPEC, DEVICE, None)


@pytest.mark.parametrize("ops", [oracles, compiled])
def test_attend_after_others_wrote_the_destination_is_run(ops: Any) -> None:
    """Keys and values put where `destination` says give what `run` gives with them."""
    made, heads = ops(), SPEC.num_heads
    backend, b = PagedAttention(SPEC, DEVICE, made), batch([5, 2], [0, 3], [[1, 0], [2, 3]], 4)
    qkv = np.random.default_rng(0).standard_normal((7, 10 * 16)).astype(np.float32)
    caches = [pools(SPEC, 4) for _ in range(2)]
    for cache in caches:
        cache.key.numpy()[2], cache.value.numpy()[2] = 0.5, 0.25
    want = step(backend, caches[0], b, qkv)
    parts = qkv.reshape(7, 10, 16)
    q, k, v = (from_numpy(np.ascontiguousarray(parts[:, a:z])) for a, z in ((0, 6), (6, 8), (8, 10)))
    to = backend.destination(backend.plan(b), caches[1])
    made.reshape_and_cache_flash(k, v, to.key, to.value, to.slot_mapping, None, None, "auto")
    out = empty_host(TensorSpec((7, heads, 16), dt.float32))
    backend.attend(backend.plan(b), q, caches[1], out)
    assert out.numpy().tobytes() == want.tobytes()
