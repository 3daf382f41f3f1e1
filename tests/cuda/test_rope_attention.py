"""Rotation, cache write and decoding as one launch: bit for bit what the kernels for each give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("fd_cuda")
from fd_cuda import library
from fd_cuda.attention import CudaAttention

from fd_core.api import dtype as dt
from fd_core.api.attention import AttentionBatch, AttentionSpec, KVCache, PackedRotary
from fd_core.host.session import Session
from fd_core.ops.attention.paged_attention import paged_attention, random_inputs
from fd_core.ops.rotary.fused_rotary_position_encoding import rotary_rows
from fd_core.testkit.check import assert_close, run_oracle
from tests.cuda.gpu import gpu_session

pytestmark = pytest.mark.device("cuda")
half = pytest.mark.parametrize("dtype", [dt.bfloat16.numpy(), dt.float16.numpy()], ids=str)
LISTS = ("cu_seqlens_q", "seq_lens", "block_table", "sinks", "scale", "window", "soft_cap")


@pytest.fixture(scope="module")
def session() -> Session:
    return gpu_session("rope_and_paged_attention")


def bits(array: Any) -> bytes:
    return bytes(np.ascontiguousarray(array).tobytes())


class Step:
    """A decoding step over random caches; the newest rows are NaN before it writes them."""

    def __init__(
        self,
        dtype: Any,
        past: list[int],
        *,
        queries: list[int] | None = None,
        neox: bool = True,
        norm: bool = False,
        unwritten: tuple[int, ...] = (),
        fits: bool = True,
        padding: int = 0,
        **options: Any,
    ) -> None:
        rng = np.random.default_rng(1)
        queries = queries or [1] * len(past)
        self.inputs = random_inputs(rng, dtype, queries, past, **options)
        _, size, kv_heads, dim = self.inputs["key_cache"].shape
        heads, tokens = self.inputs["q"].shape[1], sum(queries) + padding
        self.most = max(queries)
        self.qkv = rng.standard_normal((tokens, (heads + 2 * kv_heads) * dim)).astype(dtype)
        self.positions, self.slots = np.zeros(tokens, np.int32), np.full(tokens, -1, np.int64)
        places = [(s, p) for s, n in enumerate(queries) for p in range(past[s], past[s] + n)]
        for token, (s, at) in enumerate(places):
            block = self.inputs["block_table"][s, at // size]
            self.positions[token] = at
            if token in unwritten:
                continue
            self.slots[token] = block * size + at % size
            for cache in (self.inputs["key_cache"], self.inputs["value_cache"]):
                cache[block, at % size] = np.nan
        weights = rng.uniform(0.5, 1.5, (2, dim)).astype(dtype)
        self.norms = (*weights, 1e-6) if norm else (None, None, 0.0)
        self.table = rotary_rows(int(self.positions.max()) + 1, dim).astype(np.float32)
        self.neox, self.fits = neox, fits
        self.out_shape = (tokens, heads, dim)

    def run(self, session: Session, fused: bool, repeats: int = 1) -> list[Any]:
        """Output, caches and packed rows afterwards."""
        put = session.platform.from_host
        out = put(np.full(self.out_shape, np.nan, np.float32).astype(self.qkv.dtype))
        caches = [put(self.inputs[name]) for name in ("key_cache", "value_cache")]
        lists = [put(v) if isinstance(v, np.ndarray) else v for v in map(self.inputs.get, LISTS)]
        places = [put(v) if isinstance(v, np.ndarray) else v for v in self.norms]
        fixed = (put(self.positions), put(self.table), *places, *caches, put(self.slots), self.neox)
        for _ in range(repeats):
            qkv = put(self.qkv)
            if fused:
                library.function("rope_and_paged_attention")(qkv, *fixed, *lists, self.most, out)
                continue
            library.function("rope_and_cache")(qkv, *fixed)
            tokens, heads, dim = self.out_shape
            q = session.platform.to_host(qkv)[:, : heads * dim].reshape(tokens, heads, dim)
            q = np.ascontiguousarray(q)
            shape = [0] * 4 if self.fits else []
            attend = "paged_attention_split" if self.fits else "paged_attention_step"
            library.function(attend)(put(q), *caches, *lists, self.most, *shape, out)
        session.platform.synchronize()
        return [session.platform.to_host(t) for t in (out, *caches, qkv)]


STEPS: dict[str, tuple[list[int], dict[str, Any]]] = {
    "one": ([511], {"heads": (32, 8), "dim": 128}),
    "first-token": ([0], {"heads": (8, 2), "dim": 128, "block_size": 64}),
    "tile-of-its-own": ([16, 64, 112, 1024], {"heads": (4, 2), "dim": 128}),
    "ragged": ([600, 0, 17, 3000], {"heads": (8, 2), "dim": 128, "block_size": 64}),
    "nothing-to-do": ([40, 7, 90], {"queries": [1, 0, 1], "heads": (4, 2), "dim": 64}),
    "padded": ([300, 20], {"padding": 3, "heads": (4, 2), "dim": 64}),
    "not-written": ([77, 300, 31], {"unwritten": (0, 2), "heads": (7, 1), "dim": 128}),
    "norm": ([130, 5000], {"norm": True, "heads": (16, 2), "dim": 128}),
    "interleaved": ([130, 9], {"norm": True, "neox": False, "heads": (4, 4), "dim": 64}),
    "window": ([400, 30], {"window": 100, "heads": (8, 2), "dim": 128}),
    "sinks": ([400, 30], {"sinks": True, "soft_cap": 5.0, "heads": (8, 2), "dim": 64}),
    "several-queries": ([30, 7], {"fits": False, "queries": [3, 40], "heads": (4, 2), "dim": 64}),
    "group-of-16": ([90], {"fits": False, "heads": (16, 1), "dim": 128}),
    "odd-head": ([90], {"fits": False, "heads": (4, 2), "dim": 40}),
    "many": ([20 * i for i in range(40)], {"fits": False, "heads": (8, 8), "dim": 64}),
}
every = pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)


@half
@every
def test_one_call_equals_two(session: Session, step: tuple[list[int], dict[str, Any]], dtype: Any) -> None:
    """Output and caches; a sequence whose slot is -1 sees what the cache holds and writes nothing."""
    past, options = step
    one = Step(dtype, past, **options)
    want, got = (one.run(session, fused) for fused in (False, True))
    for w, g in zip(want[:3], got[:3], strict=True):
        assert bits(w) == bits(g)
    assert np.isnan(got[0].astype(np.float32)).any() == bool(options.get("padding"))


@half
@every
def test_one_call_agrees_with_the_oracle(
    session: Session, step: tuple[list[int], dict[str, Any]], dtype: Any
) -> None:
    """Attention's, on the queries and caches that the rotation leaves."""
    past, options = step
    one = Step(dtype, past, **options)
    _, key, value, qkv = one.run(session, False)
    tokens, (_, heads, dim) = len(one.inputs["q"]), one.out_shape
    q = np.ascontiguousarray(qkv[:tokens, : heads * dim].reshape(tokens, heads, dim))
    inputs = {**one.inputs, "q": q, "key_cache": key, "value_cache": value}
    want = run_oracle(paged_attention, inputs)["out"]
    assert_close(paged_attention, "out", one.run(session, True)[0][:tokens], want)


def test_one_launch_leaves_the_packed_rows(session: Session) -> None:
    """That is how one knows it from the two: what does not fit is rotated in place."""
    kind = dt.bfloat16.numpy()
    for past, options in STEPS.values():
        step = Step(kind, past, **options)
        assert (bits(step.run(session, True)[3]) == bits(step.qkv)) is step.fits


def test_steps_in_a_row_repeat(session: Session) -> None:
    """Counters and scratch are as the next launch wants them, however many teams share a sequence."""
    kind = dt.bfloat16.numpy()
    step = Step(kind, [20000], heads=(8, 2), dim=128, block_size=64)
    first, later = (step.run(session, True, repeats=n)[0] for n in (1, 7))
    assert bits(first) == bits(later)


def test_a_token_of_nan_spoils_only_its_own_sequence(session: Session) -> None:
    kind = dt.float16.numpy()
    step = Step(kind, [300, 90, 40], heads=(4, 2), dim=128)
    clean = step.run(session, True)[0]
    step.qkv[1] = np.nan
    got = step.run(session, True)[0]
    assert np.isnan(got[1].astype(np.float32)).all()
    assert bits(got[[0, 2]]) == bits(clean[[0, 2]])


@pytest.mark.parametrize(("queries", "taken"), [([1, 1], True), ([1, 2], False)])
def test_the_backend_takes_decoding_steps(session: Session, queries: list[int], taken: bool) -> None:
    """With the caches as it lays them out; other steps are left to the calls that are their parts."""
    kind, put = dt.bfloat16.numpy(), session.platform.from_host
    step = Step(kind, [100, 30], queries=queries, norm=True, heads=(8, 2), dim=128)
    want, *_ = step.run(session, True)
    spec = AttentionSpec(8, 2, 128, 128**-0.5, dt.bfloat16, dt.bfloat16, 16)
    backend = CudaAttention(spec, session.device, session.ops)
    pools = (step.inputs[name].transpose(0, 2, 1, 3) for name in ("key_cache", "value_cache"))
    cache = KVCache(*(put(np.ascontiguousarray(pool)) for pool in pools))
    lists = (put(step.inputs[name]) for name in LISTS[:3])
    batch = AttentionBatch(len(step.qkv), 2, *lists, put(step.slots), max(queries), 128)
    rotary = PackedRotary(put(step.table), True, put(step.norms[0]), put(step.norms[1]), step.norms[2])
    out = put(np.zeros(step.out_shape, kind))
    done = backend.run_packed(backend.plan(batch), put(step.qkv), put(step.positions), rotary, cache, out)
    session.platform.synchronize()
    assert done is taken
    assert (bits(session.platform.to_host(out)) == bits(want)) is taken


def test_wrong_arguments_are_named(session: Session) -> None:
    step = Step(dt.bfloat16.numpy(), [30], heads=(4, 2), dim=64)
    step.slots = step.slots.astype(np.int32)
    with pytest.raises(TypeError, match=r"rope_and_paged_attention\.slot_mapping: want dtype int64"):
        step.run(session, True)
