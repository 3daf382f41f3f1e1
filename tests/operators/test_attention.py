"""paged_attention: against another library and its oracle; one result per row whatever else runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from agreement import TYPES, assert_agrees, assert_refused
from hypothesis import given, settings
from hypothesis import strategies as st
from providers import PROVIDERS, run, same, target

from fd_core.api.tensor import from_numpy
from fd_core.ops.attention.paged_attention import random_inputs

OP = "paged_attention"
everywhere = pytest.mark.parametrize("provider", PROVIDERS)
every_type = pytest.mark.parametrize("dtype", TYPES, ids=str)
F32, BF16 = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)


def made(
    queries: list[int], past: list[int], dtype: Any = F32, seed: int = 0, **more: Any
) -> dict[str, Any]:
    return random_inputs(np.random.default_rng(seed), np.dtype(dtype), queries, past, **more)


def dense(inputs: dict[str, Any], s: int, name: str) -> Any:
    """Keys or values of sequence s, in order: [keys, kv_heads, dim]."""
    at = np.arange(inputs["seq_lens"][s])
    size = inputs[name].shape[1]
    return inputs[name][inputs["block_table"][s, at // size], at % size]


# -- what it computes ------------------------------------------------------------------------------


@everywhere
@every_type
@pytest.mark.parametrize(("queries", "past"), [(1, 700), (45, 0), (20, 280)])
def test_equals_torch(provider: str, dtype: Any, queries: int, past: int) -> None:
    torch = pytest.importorskip("torch")
    inputs = made([queries], [past], dtype, heads=(6, 2), dim=64)
    got = run(provider, OP, **inputs)["out"].astype(np.float32)

    def heads_first(x: Any) -> Any:
        return torch.from_numpy(x.astype(np.float32)).transpose(0, 1)[None]

    q, k, v = (
        heads_first(x) for x in (inputs["q"], *(dense(inputs, 0, n + "_cache") for n in ("key", "value")))
    )
    mask = torch.ones(queries, past + queries, dtype=torch.bool).tril(past)
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)
    rtol = {"float32": 1e-5, "bfloat16": 2**-7, "float16": 2**-10}[np.dtype(dtype).name]
    np.testing.assert_allclose(got, want[0].transpose(0, 1).numpy(), rtol=rtol, atol=1e-5)


@everywhere
def test_window_is_attention_over_the_last_keys(provider: str) -> None:
    inputs = made([3], [300], window=20)
    got = run(provider, OP, **inputs)["out"]
    for i in range(3):
        k, v = (dense(inputs, 0, n)[301 + i - 20 : 301 + i] for n in ("key_cache", "value_cache"))
        one = dict(inputs, q=inputs["q"][i : i + 1], key_cache=k[None], value_cache=v[None])
        one |= {"cu_seqlens_q": np.array([0, 1], np.int32), "seq_lens": np.array([20], np.int32)}
        one |= {"block_table": np.zeros((1, 1), np.int32), "window": 0}
        np.testing.assert_allclose(got[i], run("oracle", OP, **one)["out"][0], rtol=3e-5, atol=1e-5)


@everywhere
def test_a_window_needs_no_older_blocks(provider: str) -> None:
    inputs = made([2], [300], window=33)
    freed = inputs | {"block_table": inputs["block_table"].copy()}
    freed["block_table"][0, : (301 - 33) // 16] = -1
    assert same(run(provider, OP, **freed)["out"], run(provider, OP, **inputs)["out"])


@everywhere
def test_a_sink_is_a_key_without_value(provider: str) -> None:
    inputs = made([2], [37], heads=(2, 2), dim=32)
    plain = run(provider, OP, **inputs)["out"]
    sinks = np.array([1.5, -300], np.float32)
    got = run(provider, OP, **inputs | {"sinks": sinks})["out"]
    logits = np.einsum("nhd,khd->nhk", inputs["q"], dense(inputs, 0, "key_cache")) * inputs["scale"]
    seen = np.arange(39) <= np.array([[[37]], [[38]]])
    total = np.where(seen, np.exp(logits), 0).sum(-1)
    np.testing.assert_allclose(
        got, plain * (total / (total + np.exp(sinks)))[..., None], rtol=3e-5, atol=1e-6
    )
    drowned = run(provider, OP, **inputs | {"sinks": np.full(2, 1e4, np.float32)})["out"]
    assert not drowned.any()


@everywhere
def test_soft_cap_bounds_the_logits(provider: str) -> None:
    inputs = made([1], [30], heads=(1, 1), dim=16) | {"scale": 1e6, "soft_cap": 1e-3}
    want = dense(inputs, 0, "value_cache").mean(axis=0)  # logits within 1e-3 of each other
    np.testing.assert_allclose(run(provider, OP, **inputs)["out"][0], want, atol=3e-3)


shapes = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 330)), min_size=1, max_size=3)


@settings(max_examples=40, deadline=None)
@given(
    shape=shapes,
    heads=st.tuples(st.sampled_from([1, 2, 3, 4, 5, 7, 8]), st.integers(1, 2)),
    dim=st.sampled_from([8, 16, 24, 64, 72, 80, 128, 256]),
    block_size=st.sampled_from([1, 3, 16, 64]),
    window=st.sampled_from([0, 0, 1, 17, 200]),
    soft_cap=st.sampled_from([0.0, 0.0, 3.0]),
    sinks=st.booleans(),
    kinds=st.tuples(st.sampled_from(TYPES), st.sampled_from(TYPES)),
    seed=st.integers(0, 2**31),
)
def test_kernel_agrees(shape: Any, heads: Any, kinds: Any, seed: int, **more: Any) -> None:
    queries, past = map(list, zip(*shape, strict=True))
    more |= {"heads": (heads[0] * heads[1], heads[1]), "cache_dtype": kinds[1]}
    inputs = made(queries, past, kinds[0], seed, **more)
    assert_agrees(OP, **inputs)


@pytest.mark.parametrize("dim", range(8, 257, 8))
def test_every_head_dimension(dim: int) -> None:
    assert_agrees(OP, **made([5, 1], [20, 0], BF16, heads=(3, 1), dim=dim))


def test_many_query_heads_under_one_key_head() -> None:
    assert_agrees(OP, **made([2, 1], [0, 300], heads=(128, 1), dim=16))
    assert_agrees(OP, **made([1], [30], heads=(1, 1), dim=512))


# -- a row's result is its own ---------------------------------------------------------------------


class Story:
    """One sequence of `length` tokens whose rows can be computed in any company."""

    def __init__(self, length: int, dim: int, heads: tuple[int, int], dtype: Any, **options: Any) -> None:
        rng = np.random.default_rng(7)
        self.length, self.heads, self.dim, self.options = length, heads, dim, options
        self.q = rng.standard_normal((length, heads[0], dim)).astype(np.float32)
        self.kv = rng.standard_normal((2, length, heads[1], dim)).astype(dtype)

    def step(self, begin: int, end: int, block_size: int, seed: int, others: int) -> Any:
        """Rows [begin, end), as the last of `others` + 1 sequences."""
        rng = np.random.default_rng(seed)
        queries, past = [*rng.integers(0, 30, others), end - begin], [*rng.integers(1, 200, others), begin]
        inputs = random_inputs(
            rng, np.dtype(np.float32), queries, past, heads=self.heads, dim=self.dim, block_size=block_size,
            cache_dtype=self.kv.dtype, **self.options,
        )  # fmt: skip
        at = np.arange(end)
        for name, rows in zip(("key_cache", "value_cache"), self.kv, strict=True):
            inputs[name][inputs["block_table"][-1, at // block_size], at % block_size] = rows[:end]
        inputs["q"][sum(queries[:-1]) :] = self.q[begin:end]
        if self.options.get("sinks"):
            inputs["sinks"] = np.linspace(-1, 1, self.heads[0], dtype=np.float32)
        return run("fd-cpu", OP, **inputs)["out"][sum(queries[:-1]) :]


STORIES = [
    Story(600, 64, (4, 2), BF16),
    Story(530, 40, (3, 1), np.float32, window=70),
    Story(300, 128, (7, 1), BF16, sinks=True, soft_cap=4.0),
    Story(280, 16, (2, 2), np.float16),
]


@pytest.mark.parametrize("story", STORIES)
def test_rows_do_not_depend_on_their_company(story: Story) -> None:
    whole = story.step(0, story.length, 16, 1, 0)
    for chunk, block_size, others in ((256, 64, 0), (100, 16, 2), (37, 5, 1)):
        for begin in range(0, story.length, chunk):
            end = min(begin + chunk, story.length)
            assert same(story.step(begin, end, block_size, begin, others), whole[begin:end])
    for i in [0, 1, 15, 16, 63, 64, 255, 256, 257, story.length - 1]:  # decode
        assert same(story.step(i, i + 1, 16, i, 3 * (i % 2)), whole[i : i + 1])


@pytest.fixture
def threads() -> Iterator[Any]:
    library = pytest.importorskip("fd_cpu.library")
    set_threads = target("fd-cpu", "set_threads")
    yield set_threads
    set_threads(library.thread_count())


def test_rows_do_not_depend_on_the_threads(threads: Any) -> None:
    def steps() -> list[Any]:
        places = ((599, 0), (599, 3), (590, 1), (0, 1))
        return [STORIES[0].step(begin, 600, 16, 3, others) for begin, others in places]

    want = steps()
    for n in (1, 2, 3, 7):
        threads(n)
        assert all(same(a, b) for a, b in zip(steps(), want, strict=True)), n


def test_memory_order_and_strides_change_nothing() -> None:
    inputs = made([30, 1], [0, 300], heads=(4, 2), dim=64)
    want = run("fd-cpu", OP, **inputs)["out"]
    key, value = (
        np.ascontiguousarray(inputs[n].transpose(0, 2, 1, 3)) for n in ("key_cache", "value_cache")
    )
    wide = np.full((31, 3, 4, 80), np.nan, np.float32)
    wide[:, 1, :, :64] = inputs["q"]
    out = np.zeros((31, 2, 4, 64), np.float32)
    strided = {"q": wide[:, 1, :, :64], "key_cache": key.transpose(0, 2, 1, 3), "out": out[:, 1]}
    strided["value_cache"] = value.transpose(0, 2, 1, 3)
    call = {**inputs, "out": None, **strided}
    target("fd-cpu", OP)(*(from_numpy(v) if isinstance(v, np.ndarray) else v for v in call.values()))
    assert same(out[:, 1], want)
    assert not out[:, 0].any()


@everywhere
def test_rows_behind_the_last_sequence_stay(provider: str) -> None:
    inputs = made([3], [5])
    padded = inputs | {"q": np.concatenate([inputs["q"], np.full((2, 4, 64), np.nan, np.float32)])}
    got = run(provider, OP, **padded)["out"]
    assert same(got[:3], run(provider, OP, **inputs)["out"])
    assert (got[3:].view(np.uint8) == 0xFF).all()


def test_values_of_later_tokens_never_leak() -> None:
    """An infinite value is seen by its own token and those after it alone."""
    inputs = made([40], [0], heads=(1, 1), dim=16)
    want = run("fd-cpu", OP, **inputs)["out"]
    block, slot = inputs["block_table"][0, 25 // 16], 25 % 16
    inputs["value_cache"][block, slot] = np.inf
    inputs["key_cache"][block, slot] = np.nan
    got = run("fd-cpu", OP, **inputs)["out"]
    assert same(got[:25], want[:25])
    assert not np.isfinite(got[25:]).any()


# -- refusals --------------------------------------------------------------------------------------


def broken(**changes: Any) -> dict[str, Any]:
    return made([3, 2], [0, 30]) | changes


TABLE = made([3, 2], [0, 30])["block_table"]


def table(value: int) -> Any:
    changed = TABLE.copy()
    changed[1, 1] = value
    return changed


@everywhere
@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"seq_lens": np.array([3, 1], np.int32)}, r"seq_lens: sequence 1: want .*2.* have 1"),
        ({"block_table": table(-1)}, r"block_table: sequence 1, block 1: want .*\[0, 5\), have -1"),
        ({"block_table": table(5)}, r"block_table: sequence 1, block 1: want .*\[0, 5\), have 5"),
        ({"block_table": TABLE[:, :1].copy()}, r"block_table: sequence 1"),
    ],
)
def test_bad_lists_are_refused(provider: str, changes: dict[str, Any], match: str) -> None:
    assert_refused(provider, OP, ValueError, match, **broken(**changes))


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"q": np.zeros((5, 4, 12), F32)}, ValueError, r"key_cache: want size 12 in dimension 3"),
        (
            {"q": np.zeros((5, 3, 64), F32)},
            ValueError,
            r"q: want a multiple of .* 2 heads, have 3",
        ),
        ({"q": np.zeros((4, 4, 64), F32)}, ValueError, r"cu_seqlens_q: sequence 1: .* at most 4 tokens"),
        ({"q": np.zeros((5, 4, 64), np.int32)}, TypeError, r"q: want float32, bfloat16 or float16"),
        ({"value_cache": np.zeros((5, 16, 2, 64), BF16)}, TypeError, r"value_cache: want dtype float32"),
        ({"value_cache": np.zeros((5, 8, 2, 64), F32)}, ValueError, r"value_cache: want size 16"),
        ({"seq_lens": np.array([3, 32], np.int64)}, TypeError, r"seq_lens: want dtype int32, have int64"),
        (
            {"cu_seqlens_q": np.array([1, 3, 5], np.int32)},
            ValueError,
            r"cu_seqlens_q: want 0 first",
        ),
        ({"cu_seqlens_q": np.array([0, 3, 2], np.int32)}, ValueError, r"cu_seqlens_q: sequence 1"),
        ({"cu_seqlens_q": np.array([0, 5], np.int32)}, ValueError, r"cu_seqlens_q: want size 3"),
        ({"sinks": np.zeros(3, np.float32)}, ValueError, r"sinks: want size 4"),
        ({"sinks": np.zeros(4, np.float16)}, TypeError, r"sinks: want dtype float32"),
        ({"window": -1}, ValueError, r"window: want 0 \(all\) or more, have -1"),
        ({"soft_cap": -1.0}, ValueError, r"soft_cap: want 0 \(off\) or more, have -1"),
        ({"out": np.zeros((5, 4, 64), BF16)}, TypeError, r"out: want dtype float32"),
    ],
)
def test_bad_arguments_are_refused(changes: dict[str, Any], error: Any, match: str) -> None:
    assert_refused("fd-cpu", OP, error, match, **broken(**changes))


def test_head_dimensions_without_a_kernel_are_refused() -> None:
    inputs = made([1], [3], dim=12)
    assert_refused("fd-cpu", OP, ValueError, "multiple of 8 up to 512, have 12", **inputs)
