"""Activations: against other libraries, at the ends of the range, alone and in batches, refused."""

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
UNARY = ("silu", "gelu_tanh")
HALVES: dict[str, dict[str, Any]] = {
    "swiglu": {"y": None},
    "gelu_tanh_and_mul": {},
    "swigluoai": {"alpha": 1.702, "limit": 7.0, "type": "interleave"},
}


def normal(seed: int, shape: tuple[int, ...], dtype: Any, scale: float = 4.0) -> Any:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(dtype)


@everywhere
@pytest.mark.parametrize("name", UNARY)
def test_unary_equals_torch(provider: str, name: str) -> None:
    torch = pytest.importorskip("torch")
    x = np.linspace(-30, 30, 4001, dtype=np.float32).reshape(1, -1)
    functions = {"silu": torch.nn.functional.silu}
    functions["gelu_tanh"] = lambda v: torch.nn.functional.gelu(v, approximate="tanh")
    want = functions[name](torch.from_numpy(x).double()).numpy()
    np.testing.assert_allclose(run(provider, name, x=x)["out"], want, rtol=5e-6, atol=1e-9)


@everywhere
def test_swiglu_forms_are_one_function(provider: str) -> None:
    x = normal(0, (6, 50), np.float32)
    halves = run(provider, "swiglu", x=x, y=None)["out"]
    gate, up = x[:, :25].copy(), x[:, 25:].copy()
    assert same(halves, run(provider, "swiglu", x=gate, y=up)["out"])
    want = gate / (1 + np.exp(-gate.astype(np.float64))) * up
    np.testing.assert_allclose(halves, want, rtol=4e-6, atol=1e-7)


@everywhere
def test_swigluoai_types_by_hand(provider: str) -> None:
    """Values beyond the limit on both sides: which factors are clipped, and where 1 is added."""
    x = np.array([[9.0, -9.0, -9.0, 2.0]], np.float32)
    given_ = {"x": x, "alpha": 2.0, "limit": 3.0}

    def sigmoid(v: float) -> float:
        return 1 / (1 + np.exp(-v))

    interleaved = run(provider, "swigluoai", type="interleave", **given_)["out"]
    want = [(-3 + 1) * 3 * sigmoid(6), (2 + 1) * -9 * sigmoid(-18)]
    np.testing.assert_allclose(interleaved[0], want, rtol=4e-6)
    halves = run(provider, "swigluoai", type="other", **given_)["out"]
    np.testing.assert_allclose(halves[0], [-9 * 9 * sigmoid(3), 2 * -9 * sigmoid(-3)], rtol=4e-6)


@everywhere
@pytest.mark.parametrize("counts", [np.int32, np.int64])
def test_group_swiglu_zeroes_the_rest(provider: str, counts: Any) -> None:
    """The public fixture: 4 experts of 8 rows of 16, exact in bfloat16 for valid rows."""
    x, n = normal(1, (4, 8, 32), TYPES[2], 1.0), np.array([5, 8, 0, 3], counts)
    out = run(provider, "group_swiglu_with_masked", x=x, token_nums_per_expert=n)["out"]
    plain = run(provider, "swiglu", x=x.reshape(32, 32), y=None)["out"].reshape(4, 8, 16)
    for e in range(4):
        assert same(out[e, : n[e]], plain[e, : n[e]])
        assert not out[e, n[e] :].view(np.uint16).any()


@bounded
@given(
    shape=st.tuples(st.integers(0, 4), st.integers(1, 70)),
    kind=st.sampled_from(TYPES),
    scale=st.sampled_from([0.1, 3.0, 40.0]),
    seed=st.integers(0, 2**31),
)
def test_kernels_agree(shape: tuple[int, int], kind: Any, scale: float, seed: int) -> None:
    x = normal(seed, (shape[0], 2 * shape[1]), kind, scale)
    for name in UNARY:
        assert_agrees(name, x=x)
    for name, extra in HALVES.items():
        assert_agrees(name, x=x, **extra)
    assert_agrees("swigluoai", x=x, alpha=1.702, limit=7.0, type="halves")
    assert_agrees("swiglu", x=x, y=x[::-1].copy())


@everywhere
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_rows_alone_and_in_a_batch(provider: str, dtype: Any) -> None:
    x = normal(2, (7, 210), dtype)
    for name in UNARY:
        assert_rows_alone(provider, name, x=x)
    for name, extra in HALVES.items():
        assert_rows_alone(provider, name, x=x, **extra)


@everywhere
@pytest.mark.parametrize("name", UNARY)
def test_ends_of_the_range(provider: str, name: str) -> None:
    x = np.array([[np.inf, 1e30, -1e30, -200.0, 0.0, -0.0, np.nan, -np.inf]], np.float32)
    out = run(provider, name, x=x)["out"][0]
    assert out[0] == np.inf
    assert out[1] == np.float32(1e30)
    assert (out[2:6] == 0).all()
    assert np.isnan(out[6:]).all()  # -inf * 0


@everywhere
def test_strided_halves(provider: str) -> None:
    wide = normal(3, (4, 100), np.float32)
    want = run(provider, "swiglu", x=wide[:, 10:50].copy(), y=None)["out"]
    into = np.full((4, 40), 7.0, np.float32)
    target(provider, "swiglu")(from_numpy(wide[:, 10:50]), None, from_numpy(into[:, 5:25]))
    assert same(into[:, 5:25], want)
    assert (np.delete(into, np.s_[5:25], axis=1) == 7).all()


@everywhere
@pytest.mark.parametrize("name", list(HALVES))
def test_odd_width_is_refused(provider: str, name: str) -> None:
    match = rf"{name}\.x: want an even last dimension, have "
    assert_refused(provider, name, ValueError, match, x=np.ones((2, 5), np.float32), **HALVES[name])


@everywhere
def test_counts_beyond_the_buffer_are_refused(provider: str) -> None:
    match = r"token_nums_per_expert: want indices in \[0, 4\), have 4 at position 1"
    x, n = np.ones((2, 3, 8), np.float32), np.array([3, 4], np.int64)
    assert_refused(provider, "group_swiglu_with_masked", ValueError, match, x=x, token_nums_per_expert=n)


def test_other_types_are_refused() -> None:
    x = np.ones((2, 8), np.float32)
    assert_refused("fd-cpu", "silu", TypeError, r"silu\.x: want float32.*have int64", x=x.astype(np.int64))
    y = x.astype(np.float16)
    assert_refused("fd-cpu", "swiglu", TypeError, r"swiglu\.y: want dtype float32, have float16", x=x, y=y)
