"""Dense linear: against another library, packed and plain alike, rows that never notice each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from agreement import TYPES, assert_agrees, assert_refused, assert_rows_alone
from hypothesis import given, settings
from hypothesis import strategies as st
from providers import PROVIDERS, run, same, target

from fd_core.api.tensor import empty_host, from_numpy

everywhere = pytest.mark.parametrize("provider", PROVIDERS)
every_type = pytest.mark.parametrize("dtype", TYPES, ids=str)
#: Around the tile (32 columns), the tallest tiles (6, 12, 14 rows) and the block of K (256).
SIZES = st.sampled_from([1, 2, 31, 32, 33, 64, 95, 97, 160])
DEPTHS = st.sampled_from([0, 1, 15, 16, 255, 256, 257, 300, 513])
ROWS = st.sampled_from([0, 1, 2, 3, 4, 5, 7, 8, 13, 14, 15, 29, 43])


def normal(seed: int, shape: tuple[int, ...], dtype: Any) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(dtype)


def packed(x: Any, weight: Any, bias: Any = None, out: Any = None) -> Any:
    """The private pair of kernels that the engine runs."""
    pack, apply = target("fd-cpu", "pack_linear_weight"), target("fd-cpu", "linear_packed")
    from fd_cpu.quant import packed_spec

    panels = empty_host(packed_spec(from_numpy(weight).spec))
    pack(from_numpy(weight), panels)
    result = np.full((len(x), len(weight)), np.nan, x.dtype) if out is None else out
    shift = None if bias is None else from_numpy(bias)
    apply(from_numpy(x), panels, shift, from_numpy(result))
    return result


@everywhere
@every_type
def test_equals_torch(provider: str, dtype: Any) -> None:
    torch = pytest.importorskip("torch")
    x, w, b = normal(0, (9, 384), dtype), normal(1, (70, 384), dtype), normal(2, (70,), dtype)
    got = run(provider, "linear", x=x, weight=w, bias=b)["out"].astype(np.float32)
    wide = [torch.from_numpy(a.astype(np.float64)) for a in (x, w, b)]
    want = torch.nn.functional.linear(*wide).numpy()
    np.testing.assert_allclose(got, want, rtol=2**-8 if dtype != np.float32 else 1e-5, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(
    ROWS,
    DEPTHS,
    SIZES,
    st.sampled_from(TYPES),
    st.sampled_from(TYPES),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_plain_and_packed_give_the_same_bits(
    rows: int, depth: int, columns: int, x_type: Any, w_type: Any, biased: bool, seed: int
) -> None:
    x = normal(seed, (rows, depth), x_type)
    w = (normal(seed + 1, (columns, depth), np.float32) / np.float32(max(1, depth) ** 0.5)).astype(w_type)
    b = normal(seed + 2, (columns,), w_type) if biased else None
    plain = assert_agrees("linear", x=x, weight=w, bias=b)["out"]
    assert same(packed(x, w, b), plain)


@everywhere
@every_type
def test_rows_alone_and_in_a_batch(provider: str, dtype: Any) -> None:
    x, w = normal(3, (17, 530), dtype), normal(4, (65, 530), dtype)
    assert_rows_alone(provider, "linear", x=x, weight=w, bias=None)


@every_type
def test_packed_rows_do_not_depend_on_the_batch(dtype: Any) -> None:
    """Every path (one row, several panels at once, several tiles, several passes) gives one answer."""
    x, w = normal(5, (1100, 300), np.float32), normal(6, (75, 300), dtype)
    whole = packed(x, w)
    for rows in (1, 2, 3, 4, 6, 7, 8, 12, 14, 15, 28, 57, 129, 513):
        assert same(packed(x[:rows], w), whole[:rows]), rows


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads_do_not_change_a_bit(threads: int) -> None:
    x, w = normal(7, (40, 700), np.float32), normal(8, (1000, 700), TYPES[1])
    whole = [packed(x[:rows], w) for rows in (1, 5, 40)]
    plain = run("fd-cpu", "linear", x=x, weight=w, bias=None)["out"]
    from fd_cpu import library

    try:
        library.set_threads(threads)
        for rows, want in zip((1, 5, 40), whole, strict=True):
            assert same(packed(x[:rows], w), want)
        assert same(run("fd-cpu", "linear", x=x, weight=w, bias=None)["out"], plain)
    finally:
        library.set_threads(library.thread_count())


def test_strided_rows_and_a_wider_output() -> None:
    """Activations may be columns of a wider buffer; float16 rows may leave as float32."""
    wide, w = normal(9, (5, 90), np.float16), normal(10, (33, 30), np.float16)
    into = np.full((5, 50), 7.0, np.float32)
    views = from_numpy(wide[:, 30:60]), from_numpy(w), from_numpy(into[:, 8:41])
    target("fd-cpu", "linear")(views[0], views[1], None, views[2])
    want = wide[:, 30:60].astype(np.float64) @ w.astype(np.float64).T
    np.testing.assert_allclose(into[:, 8:41], want, rtol=1e-5, atol=2e-5)
    assert (into[:, :8] == 7).all()
    assert (into[:, 41:] == 7).all()
    again = np.empty((5, 33), np.float32)
    assert same(packed(wide[:, 30:60], w, out=again), np.ascontiguousarray(into[:, 8:41]))


def test_infinities_and_nan_stay_in_their_place() -> None:
    x, w = np.ones((3, 40), np.float32), np.ones((35, 40), np.float32)
    x[1, 3], w[34, 5] = np.nan, np.inf
    out = run("fd-cpu", "linear", x=x, weight=w, bias=None)["out"]
    assert np.isnan(out[1]).all()
    assert np.isinf(out[[0, 2], 34]).all()
    assert (out[[0, 2], :34] == 40).all()


X, W, B = np.ones((2, 8), np.float32), np.ones((3, 8), np.float32), np.ones(3, np.float32)
BAD = [
    (ValueError, r"linear\.weight: want size 8.*have \[3, 7\]", {"weight": W[:, :7].copy()}),
    (ValueError, r"linear\.bias: want size 3.*have \[2\]", {"bias": B[:2]}),
    (ValueError, r"linear\.x: want rank 2, have \[8\]", {"x": X[0], "out": np.ones((2, 3), np.float32)}),
    (TypeError, r"linear\.weight: want float32.*have int8", {"weight": W.astype(np.int8)}),
    (TypeError, r"linear\.x: want float32.*have int32", {"x": X.astype(np.int32)}),
    (TypeError, r"linear\.bias: want float32.*have int64", {"bias": B.astype(np.int64)}),
    (ValueError, r"linear\.out: want size 3 in dimension 1", {"out": np.ones((2, 4), np.float32)}),
    (ValueError, r"linear\.out: want size 2 in dimension 0", {"out": np.ones((1, 3), np.float32)}),
]


@pytest.mark.parametrize(("error", "match", "change"), BAD, ids=[m for _, m, _ in BAD])
def test_refusals(error: type[Exception], match: str, change: dict[str, Any]) -> None:
    assert_refused("fd-cpu", "linear", error, match, **{"x": X, "weight": W, "bias": B, **change})


def test_packing_refuses_another_shape() -> None:
    with pytest.raises(ValueError, match=r"pack_linear_weight\.packed: want size 1 in dimension 0"):
        target("fd-cpu", "pack_linear_weight")(from_numpy(W), from_numpy(np.ones((2, 8, 32), np.float32)))
    with pytest.raises(ValueError, match=r"linear_packed\.packed: want size 8 in dimension 1"):
        target("fd-cpu", "linear_packed")(
            from_numpy(X),
            from_numpy(np.ones((1, 9, 32), np.float32)),
            None,
            from_numpy(np.ones((2, 3), np.float32)),
        )
