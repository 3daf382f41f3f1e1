"""The norms: against another library, on strided rows, alone and in batches, and refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from agreement import TYPES, assert_agrees, assert_refused, assert_rows_alone
from hypothesis import given, settings
from hypothesis import strategies as st
from providers import PROVIDERS, run, same, target

from fd_core.api.tensor import from_numpy

bounded = settings(max_examples=25, deadline=None)
everywhere = pytest.mark.parametrize("provider", PROVIDERS)
every_type = pytest.mark.parametrize("dtype", TYPES, ids=str)
seeds = st.integers(0, 2**31)
widths = st.integers(1, 150) | st.sampled_from([512, 1000])


def normal(seed: int, shape: tuple[int, ...], dtype: Any) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@everywhere
@every_type
def test_rms_norm_equals_torch(provider: str, dtype: Any) -> None:
    torch = pytest.importorskip("torch")
    x, w = normal(0, (128, 2560), dtype), normal(1, (2560,), dtype)
    got = run(provider, "rms_norm", x=x, weight=w, eps=1e-5)["out"].astype(np.float32)
    wide = torch.from_numpy(x.astype(np.float32)), torch.from_numpy(w.astype(np.float32))
    want = torch.nn.functional.rms_norm(wide[0], (2560,), wide[1], 1e-5).numpy()
    np.testing.assert_allclose(got, want, rtol=2**-7 if dtype != np.float32 else 1e-5, atol=1e-4)


@everywhere
@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm_equals_torch(provider: str, bias: bool) -> None:
    torch = pytest.importorskip("torch")
    x = normal(0, (9, 333), np.float32) + np.float32(2)
    w, b = normal(1, (333,), np.float32), normal(2, (333,), np.float32) if bias else None
    got = run(provider, "layer_norm", x=x, weight=w, bias=b, eps=1e-5)["out"]
    shift = torch.from_numpy(b) if b is not None else None
    want = torch.nn.functional.layer_norm(torch.from_numpy(x), (333,), torch.from_numpy(w), shift, 1e-5)
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-5, atol=2e-5)


@bounded
@given(rows=st.integers(0, 5), width=widths, kind=st.sampled_from(TYPES), wide=st.booleans(), seed=seeds)
def test_kernels_agree(rows: int, width: int, kind: Any, wide: bool, seed: int) -> None:
    x, residual = normal(seed, (2, rows, width), kind)
    weight, bias = normal(seed + 1, (2, width), np.float32 if wide else kind)
    assert_agrees("rms_norm", x=x, weight=weight, eps=1e-6)
    assert_agrees("fused_add_rmsnorm", x=x, residual=residual, weight=weight, eps=1e-6)
    assert_agrees("layer_norm", x=x + kind.type(1), weight=weight, bias=bias, eps=1e-5)


@bounded
@given(
    rows=st.integers(0, 4),
    heads=st.tuples(st.integers(0, 4), st.integers(0, 3)),
    dim=st.integers(1, 96),
    kind=st.sampled_from(TYPES),
    seed=seeds,
)
def test_qk_norm_agrees(rows: int, heads: tuple[int, int], dim: int, kind: Any, seed: int) -> None:
    q_size, kv_size = heads[0] * dim, heads[1] * dim
    qkv = normal(seed, (rows, q_size + 2 * kv_size), kind)
    q, k = normal(seed + 1, (2, dim), kind)
    sizes = {"eps": 1e-6, "q_size": q_size, "kv_size": kv_size, "head_dim": dim}
    got = assert_agrees("qk_rmsnorm_fused", qkv=qkv, q_norm_weight=q, k_norm_weight=k, **sizes)
    assert same(got["qkv"][:, q_size + kv_size :], qkv[:, q_size + kv_size :])


@everywhere
@every_type
def test_fused_add_is_addition_then_norm(provider: str, dtype: Any) -> None:
    x, residual = normal(3, (2, 6, 300), dtype)
    w = normal(4, (300,), dtype)
    got = run(provider, "fused_add_rmsnorm", x=x, residual=residual, weight=w, eps=1e-5)
    total = (x.astype(np.float32) + residual.astype(np.float32)).astype(dtype)
    assert same(got["residual"], total)
    assert same(got["x"], run(provider, "rms_norm", x=total, weight=w, eps=1e-5)["out"])


@everywhere
def test_qk_norm_is_rms_norm_of_each_head(provider: str) -> None:
    """The public fixture's sizes: 32 and 4 heads of 128, 128 tokens, bfloat16."""
    kind = TYPES[2]
    qkv, w = normal(5, (128, 40 * 128), kind), normal(6, (2, 128), kind)
    sizes = {"eps": 1e-6, "q_size": 4096, "kv_size": 512, "head_dim": 128}
    got = run(provider, "qk_rmsnorm_fused", qkv=qkv, q_norm_weight=w[0], k_norm_weight=w[1], **sizes)["qkv"]
    for part, weight in ((slice(0, 4096), w[0]), (slice(4096, 4608), w[1])):
        heads = np.ascontiguousarray(qkv[:, part]).reshape(-1, 128)
        want = run(provider, "rms_norm", x=heads, weight=weight, eps=1e-6)["out"]
        assert same(np.ascontiguousarray(got[:, part]).reshape(-1, 128), want)


@everywhere
@every_type
def test_rows_alone_and_in_a_batch(provider: str, dtype: Any) -> None:
    x, residual = normal(7, (2, 9, 1030), dtype)
    w = normal(8, (1030,), dtype)
    assert_rows_alone(provider, "rms_norm", x=x, weight=w, eps=1e-6)
    assert_rows_alone(provider, "layer_norm", x=x, weight=w, bias=w, eps=1e-6)
    assert_rows_alone(provider, "fused_add_rmsnorm", x=x, residual=residual, weight=w, eps=1e-6)
    sizes = {"eps": 1e-6, "q_size": 206 * 3, "kv_size": 206, "head_dim": 206}
    heads = {"q_norm_weight": w[:206], "k_norm_weight": w[206:412]}
    assert_rows_alone(provider, "qk_rmsnorm_fused", qkv=x, **heads, **sizes)


@everywhere
def test_strided_rows_leave_their_neighbours(provider: str) -> None:
    wide, w = normal(9, (5, 90), np.float32), normal(10, (30,), np.float32)
    want = run(provider, "rms_norm", x=wide[:, 30:60].copy(), weight=w, eps=1e-6)["out"]
    into = np.full((5, 80), 7.0, np.float32)
    views = [from_numpy(v) for v in (wide[:, 30:60], w, into[:, 20:50])]
    target(provider, "rms_norm")(views[0], views[1], 1e-6, views[2])
    assert same(into[:, 20:50], want)
    assert (into[:, :20] == 7).all()
    assert (into[:, 50:] == 7).all()


@everywhere
def test_a_nan_row_stays_alone(provider: str) -> None:
    x, w = normal(11, (3, 40), np.float32), np.ones(40, np.float32)
    x[1, 5] = np.nan
    out = run(provider, "rms_norm", x=x, weight=w, eps=1e-6)["out"]
    assert np.isnan(out[1]).all()
    assert np.isfinite(out[[0, 2]]).all()


X, W = np.ones((2, 8), np.float32), np.ones(8, np.float32)
BAD_NORM = [
    (ValueError, r"rms_norm\.weight: want size 8.*have \[7\]", {"weight": W[:7]}),
    (TypeError, r"rms_norm\.weight: want dtype float32, have float16", {"weight": W.astype(np.float16)}),
    (TypeError, r"rms_norm\.x: want float32.*have int32", {"x": X.astype(np.int32)}),
    (ValueError, r"rms_norm\.x: want rank 2, have \[8\]", {"x": W}),
    (ValueError, r"rms_norm\.eps: want >= 0, have -1", {"eps": -1.0}),
    (ValueError, r"rms_norm\.eps", {"eps": float("nan")}),
    (TypeError, r"rms_norm\.out: want dtype float32", {"out": X.astype(np.float16)}),
    (ValueError, r"rms_norm\.out: want size 2", {"out": np.ones((3, 8), np.float32)}),
]


@pytest.mark.parametrize(("error", "match", "change"), BAD_NORM)
def test_rms_norm_refuses(error: type[Exception], match: str, change: dict[str, Any]) -> None:
    assert_refused("fd-cpu", "rms_norm", error, match, **{"x": X, "weight": W, "eps": 1e-6, **change})


@everywhere
@pytest.mark.parametrize("bad", ["q_size", "kv_size"])
def test_qk_norm_refuses_parts_of_heads(provider: str, bad: str) -> None:
    sizes = {"q_size": 4, "kv_size": 2, "head_dim": 2, "eps": 0.0} | {bad: 3}
    qkv, w = np.ones((1, sizes["q_size"] + 2 * sizes["kv_size"]), np.float32), np.ones(2, np.float32)
    match = rf"qk_rmsnorm_fused\.{bad}: want a multiple of head_dim 2, have 3"
    pair = {"q_norm_weight": w, "k_norm_weight": w}
    assert_refused(provider, "qk_rmsnorm_fused", ValueError, match, qkv=qkv, **pair, **sizes)


def test_fused_add_refuses_one_memory_for_both() -> None:
    x = from_numpy(X.copy())
    with pytest.raises(ValueError, match=r"fused_add_rmsnorm\.residual: want memory of its own"):
        target("fd-cpu", "fused_add_rmsnorm")(x, x, from_numpy(W), 1e-6)
