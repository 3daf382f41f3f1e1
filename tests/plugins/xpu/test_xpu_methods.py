"""fd-xpu's attention backend and linear methods on Paddle's CPU place, against oracles and plain NumPy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fd_core.api import dtype as dt
from fd_core.api.attention import AttentionBatch, AttentionSpec, KVCache
from fd_core.api.quant import LinearSpec
from fd_core.api.tensor import TensorSpec, from_numpy
from fd_core.api.verdict import ReasonCode
from fd_core.host.session import Session
from fd_core.ops.attention.paged_attention import random_inputs
from fd_core.ops.catalogue import catalogue
from fd_core.testkit.check import run_oracle

pytest.importorskip("fd_xpu", reason="fd-xpu is not installed")
from fd_xpu.attention import PaddleAttention
from fd_xpu.quant import METHODS, Int4Linear

Array = np.ndarray[Any, Any]


def spec_of(inputs: dict[str, Any], kind: dt.DType) -> AttentionSpec:
    heads, dim = inputs["q"].shape[1:]
    _, size, kv_heads, _ = inputs["key_cache"].shape
    cache = dt.dtype(inputs["key_cache"].dtype.name)
    window, cap = inputs["window"] or None, inputs["soft_cap"] or None
    return AttentionSpec(heads, kv_heads, dim, inputs["scale"], kind, cache, size, window, cap)


@pytest.mark.parametrize(
    ("queries", "past", "more"),
    [
        ([37], [0], {}),
        ([1, 1, 1], [0, 40, 511], {}),
        ([1, 0, 5, 33], [600, 7, 250, 0], {"heads": (6, 2), "dim": 40}),
        ([7, 300], [400, 30], {"window": 33}),
        ([6, 1], [0, 270], {"sinks": True, "soft_cap": 5.0}),
    ],
)
@pytest.mark.parametrize("kind", [dt.float32, dt.bfloat16])
def test_backend_writes_and_attends(
    session: Session,
    queries: list[int],
    past: list[int],
    more: dict[str, Any],
    kind: dt.DType,
) -> None:
    """The step's own keys come through `run`, the earlier ones from the pools: the oracle has all of them
    in its cache. Tolerance: paged_attention's own."""
    inputs = random_inputs(np.random.default_rng(1), kind.numpy(), queries, past, **more)
    want = run_oracle(catalogue()["paged_attention"], inputs)["out"]
    spec, put = spec_of(inputs, kind), session.platform.from_host
    slots, new = take_new_tokens(inputs, queries)
    backend = PaddleAttention(spec, session.device, session.ops)
    pools = KVCache(put(inputs["key_cache"]), put(inputs["value_cache"]))
    shape = PaddleAttention.kv_layout(spec).pool_shape(inputs["key_cache"].shape[0])
    assert pools.key.shape == shape
    lists = [put(inputs[name]) for name in ("cu_seqlens_q", "seq_lens", "block_table")]
    batch = AttentionBatch(
        sum(queries), len(queries), *lists, put(slots), max(queries), max(inputs["seq_lens"])
    )
    out = session.platform.empty(TensorSpec(want.shape, kind))
    given = None if inputs["sinks"] is None else put(inputs["sinks"])
    q, k, v = (put(x) for x in (inputs["q"], *new))
    backend.run(backend.plan(batch), q, k, v, pools, out, sinks=given)
    rtol, atol = catalogue()["paged_attention"].tolerance.of(kind)
    got = session.platform.to_host(out).astype(np.float64)
    np.testing.assert_allclose(got, want.astype(np.float64), rtol=rtol, atol=atol)


def take_new_tokens(inputs: dict[str, Any], queries: list[int]) -> tuple[Array, list[Array]]:
    """Slots of the step's tokens and their rows, which the pools then hold no more (NaN)."""
    size = inputs["key_cache"].shape[1]
    slots = []
    for s, count in enumerate(queries):
        last = int(inputs["seq_lens"][s])
        for position in range(last - count, last):
            slots.append(int(inputs["block_table"][s, position // size]) * size + position % size)
    where = np.array(slots, np.int64)
    at = where // size, where % size
    rows = [inputs[name][at].copy() for name in ("key_cache", "value_cache")]
    for name in ("key_cache", "value_cache"):
        inputs[name][at] = np.nan
    return where, rows


def test_backend_with_codes_in_the_cache(session: Session) -> None:
    """An int8 cache: the oracles write and read the same rows. Tolerance: paged_attention's own."""
    queries, inputs = (
        [21, 9],
        random_inputs(np.random.default_rng(2), np.dtype(np.float32), [21, 9], [0, 0]),
    )
    slots, new = take_new_tokens(inputs, queries)
    spec = replace(spec_of(inputs, dt.float32), cache_dtype=dt.int8)
    shape = PaddleAttention.kv_layout(spec).pool_shape(inputs["key_cache"].shape[0])
    assert shape[-1] == 64 + 4
    pools = [np.full(shape, 99, np.int8) for _ in range(2)]
    rows = {
        "key": new[0],
        "value": new[1],
        "key_cache": pools[0],
        "value_cache": pools[1],
        "slot_mapping": slots,
    }
    more = {"k_scale": None, "v_scale": None, "kv_cache_dtype": "int8"}
    written = run_oracle(catalogue()["reshape_and_cache_flash"], {**rows, **more})
    caches = {name: written[name] for name in ("key_cache", "value_cache")}
    want = run_oracle(catalogue()["paged_attention"], {**inputs, **caches})["out"]
    put = session.platform.from_host
    cache = KVCache(*map(put, pools))
    lists = [put(inputs[name]) for name in ("cu_seqlens_q", "seq_lens", "block_table")]
    batch = AttentionBatch(30, 2, *lists, put(slots), 21, 21)
    backend, out = PaddleAttention(spec, session.device, session.ops), put(np.zeros_like(want))
    backend.run(backend.plan(batch), *(put(x) for x in (inputs["q"], *new)), cache, out)
    assert session.platform.to_host(cache.key).tobytes() == caches["key_cache"].tobytes()
    rtol, atol = catalogue()["paged_attention"].tolerance.of(dt.float32)
    np.testing.assert_allclose(session.platform.to_host(out), want, rtol=rtol, atol=atol)


def test_backend_says_what_it_cannot(session: Session) -> None:
    good = AttentionSpec(6, 2, 16, 0.25, dt.float32, dt.bfloat16, 4)
    assert PaddleAttention.supports(good, session.device).ok
    for change, code in [
        ({"head_dim": 12}, ReasonCode.HEAD_DIM),
        ({"num_heads": 5}, ReasonCode.SHAPE),
        ({"window": 0}, ReasonCode.SHAPE),
        ({"dtype": dt.bfloat16, "cache_dtype": dt.float32}, ReasonCode.DTYPE),
    ]:
        verdict = PaddleAttention.supports(replace(good, **change), session.device)
        assert [r.code for r in verdict.reasons] == [code]
    other = replace(session.device, features=frozenset())
    assert PaddleAttention.supports(good, other).reasons[0].code is ReasonCode.FEATURE


# -- linear layers --------------------------------------------------------------------------------------


def linear(session: Session, name: str, weight: Array, **config: Any) -> Any:
    method = {m.name: m for m in METHODS}[name](session.device, session.platform, session.ops, config)
    kind = dt.dtype(weight.dtype.name)
    spec = LinearSpec(weight.shape[1], weight.shape[0], True, kind, dt.float32, "layers.0.mlp")
    assert type(method).supports(spec, session.device).ok
    assert method.create_weights(spec)["weight"].shape == weight.shape
    packed = method.process_weights(spec, {"weight": from_numpy(weight)})

    def run(x: Array, bias: Array | None) -> Array:
        put = session.platform.from_host
        out = session.platform.empty(TensorSpec((len(x), len(weight)), dt.float32))
        method.apply(put(x), packed, None if bias is None else put(bias), out)
        return session.platform.to_host(out)

    return run, packed


def meant(weight: Array) -> Array:
    """What wint8 means: nearest multiples of absmax / 127 of each row. Ratios are float32, as the method's:
    16-bit weights make ties, which must fall alike."""
    wide = weight.astype(np.float32)
    scale = np.abs(wide).max(axis=1, keepdims=True) / np.float32(127)
    return np.rint(wide / np.where(scale > 0, scale, np.float32(1))).astype(np.float64) * scale


def unpacked(packed: Any, platform: Any, group: int, depth: int) -> Array:
    """The weight that wint4's bytes and scales stand for, by its description: two codes a byte, the lower
    input first, each code + 8."""
    stored = platform.to_host(packed.codes)
    codes = np.stack([stored & 15, stored >> 4], -1).reshape(len(stored), -1, group).astype(np.float64) - 8
    scales = platform.to_host(packed.scales).astype(np.float64)
    return (codes * scales[..., None]).reshape(len(stored), -1)[:, :depth]


SHAPES = [(33, 64), (1, 1), (40, 100), (95, 257)]


def random_linear(shape: tuple[int, int]) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(5)
    weight = (rng.standard_normal(shape) / shape[1] ** 0.5).astype(dt.bfloat16.numpy())
    return weight, rng.standard_normal((5, shape[1]), np.float32), rng.standard_normal(shape[0], np.float32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["none", "wint8"])
def test_method_multiplies_what_its_codes_mean(session: Session, shape: tuple[int, int], name: str) -> None:
    """Bounds as those of `linear`: sums of K <= 257 float32 products and one rounding."""
    weight, x, bias = random_linear(shape)
    real = meant(weight) if name == "wint8" else weight.astype(np.float64)
    run, _ = linear(session, name, weight)
    for shift in (None, bias):
        want = x.astype(np.float64) @ real.T + (0 if shift is None else shift)
        np.testing.assert_allclose(run(x, shift), want, rtol=1e-5, atol=2e-5)
    assert run(x[:0], bias).shape == (0, shape[0])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("group", [32, 64])
def test_int4_multiplies_what_its_bytes_mean(session: Session, shape: tuple[int, int], group: int) -> None:
    """And no group is further from its weights than under the scale absmax / 7."""
    weight, x, bias = random_linear(shape)
    run, packed = linear(session, "wint4", weight, group_size=group)
    real = unpacked(packed, session.platform, group, shape[1])
    want = x.astype(np.float64) @ real.T + bias
    np.testing.assert_allclose(run(x, bias), want, rtol=1e-5, atol=2e-5)
    wide = weight.astype(np.float64)
    for start in range(0, shape[1], group):
        part, mine = wide[:, start : start + group], real[:, start : start + group]
        scale = np.abs(part).max(axis=1, keepdims=True) / 7
        plain = np.rint(part / np.where(scale > 0, scale, 1)) * scale
        errors = [np.square(part - other).sum(axis=1) for other in (mine, plain)]
        assert (errors[0] <= errors[1] * (1 + 1e-5) + 1e-12).all()


def test_int4_takes_half_a_byte(session: Session) -> None:
    method = Int4Linear(session.device, session.platform, session.ops)
    spec = LinearSpec(128, 32, False, dt.float32, dt.float32)
    packed = method.process_weights(spec, {"weight": from_numpy(np.ones((32, 128), np.float32))})
    assert packed.codes.nbytes == 32 * 128 // 2
    assert packed.scales.shape == (32, 2)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"group_size": 48}, "'wint4': want group_size 32 | 64 | 128, have 48"),
        ({"is_quantized": True}, "want a checkpoint of plain weights"),
    ],
)
def test_options_that_are_refused(session: Session, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Int4Linear(session.device, session.platform, session.ops, config)
