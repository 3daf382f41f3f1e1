"""Ops of weight-only quantisation: the stored order spelled out, round trips, products, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from agreement import TYPES, assert_agrees, assert_refused, assert_rows_alone
from hypothesis import given, settings
from hypothesis import strategies as st
from providers import PROVIDERS, run

everywhere = pytest.mark.parametrize("provider", PROVIDERS)
every_type = pytest.mark.parametrize("dtype", TYPES, ids=str)
ALGORITHMS = ("weight_only_int8", "weight_only_int4")
every_algorithm = pytest.mark.parametrize("algo", ALGORITHMS)
every_group = pytest.mark.parametrize("group", [-1, 64, 128])


def normal(seed: int, shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(dtype)


def quantise(provider: str, x: Any, algo: str, group: int = -1) -> tuple[Any, Any]:
    found = run(provider, "weight_quantize", x=x, algo=algo, arch=80, group_size=group)
    return found["out"], found["scale"]


def dequantise(provider: str, codes: Any, scale: Any, algo: str, group: int = -1) -> Any:
    inputs = {"x": codes, "scale": scale, "algo": algo, "out_dtype": "float16", "group_size": group}
    return run(provider, "weight_dequantize", **inputs)["out"]


@everywhere
def test_order_of_int8_codes(provider: str) -> None:
    """Bytes of columns 0 and 1 alternate in runs of 64; a run of 16 k is 0 8 1 9 2 10 ... stored + 128."""
    x = np.zeros((128, 16), np.float32)
    x[0] = 127  # makes every scale 1
    for k, n, value in [(1, 0, 5), (8, 0, 7), (9, 0, 9), (64, 0, 11), (0, 1, 127), (63, 1, 13), (2, 2, 15)]:
        x[k, n] = value
    codes, scale = quantise(provider, x, "weight_only_int8")
    flat = codes.view(np.uint8).reshape(-1).astype(int) - 128
    assert (scale == 1).all()
    found = {int(i): int(flat[i]) for i in np.flatnonzero(flat) if i < 2 * 256}
    want = {0: 127, 1: 7, 2: 5, 3: 9, 128: 11, 64: 127, 64 + 63: 13, 256: 127, 256 + 4: 15, 256 + 64: 127}
    assert found == want


@everywhere
def test_order_of_int4_codes(provider: str) -> None:
    """Nibbles of four columns in runs of 64; a run of 32 k is 0 8 16 24 1 9 ... stored + 8, low first."""
    x = np.zeros((64, 16), np.float32)
    x[0] = 7
    for k, n, value in [(8, 0, 1), (1, 0, 2), (33, 0, 3), (31, 1, 4), (24, 3, 5)]:
        x[k, n] = value
    codes, _ = quantise(provider, x, "weight_only_int4")
    raw = codes.view(np.uint8).reshape(-1)
    flat = np.stack([raw & 15, raw >> 4], axis=1).reshape(-1).astype(int) - 8
    found = {int(i): int(flat[i]) for i in np.flatnonzero(flat) if i < 256}
    want = {0: 7, 1: 1, 4: 2, 36: 3, 64: 7, 64 + 31: 4, 128: 7, 192: 7, 192 + 3: 5}
    assert found == want


@everywhere
@every_type
@every_algorithm
@every_group
def test_round_trip_is_within_half_a_step(provider: str, dtype: Any, algo: str, group: int) -> None:
    x = normal(0, (192, 48), dtype)
    codes, scale = quantise(provider, x, algo, group)
    assert codes.shape == ((48, 192) if algo.endswith("8") else (24, 192))
    assert scale.shape == ((48,) if group < 0 else (-(-192 // group), 48))
    assert scale.dtype == x.dtype
    back = dequantise(provider, codes, scale, algo, group)
    steps = np.repeat(np.atleast_2d(scale.astype(np.float64)), 192 if group < 0 else group, axis=0)[:192]
    away = np.abs(back.astype(np.float64) - x.astype(np.float64))
    # The scale's own rounding moves the outermost codes by up to 127 * 2^-9 of a step; then one rounding.
    assert (away <= steps * 0.76 + np.abs(x.astype(np.float64)) * 2.0**-8).all()


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([0, 64, 128, 192, 320]),
    st.sampled_from([0, 16, 48, 80]),
    st.sampled_from(ALGORITHMS),
    st.sampled_from([-1, 64, 128]),
    st.sampled_from(TYPES),
    st.integers(0, 2**31),
)
def test_kernels_agree(depth: int, columns: int, algo: str, group: int, dtype: Any, seed: int) -> None:
    x = normal(seed, (depth, columns), dtype)
    found = assert_agrees("weight_quantize", x=x, algo=algo, arch=0, group_size=group)
    common = {"algo": algo, "out_dtype": "", "group_size": group}
    assert_agrees("weight_dequantize", x=found["out"], scale=found["scale"], **common)


@everywhere
def test_what_is_not_finite_or_zero(provider: str) -> None:
    x = normal(1, (64, 16))
    x[3, 2], x[4, 5], x[:, 7] = np.nan, np.inf, 0
    codes, scale = quantise(provider, x, "weight_only_int8")
    assert np.isnan(scale[2])
    assert np.isinf(scale[5])
    assert scale[7] == 0
    clean = x.copy()
    clean[:, [2, 5]] = 0
    again, _ = quantise(provider, clean, "weight_only_int8")
    np.testing.assert_array_equal(codes, again)


@everywhere
@every_type
@every_algorithm
@every_group
def test_linear_is_the_product_of_the_dequantised(provider: str, dtype: Any, algo: str, group: int) -> None:
    w = normal(2, (192, 48), np.float32) / np.float32(14)
    x, bias = normal(3, (2, 5, 192), dtype), normal(4, (48,), dtype)
    codes, scale = quantise(provider, w.astype(dtype), algo, group)
    linear = {"x": x, "weight": codes, "bias": bias, "weight_scale": scale, "weight_dtype": algo[12:]}
    got = run(provider, "weight_only_linear", **linear, arch=80, group_size=group)["out"]
    back = dequantise(provider, codes, scale, algo, group).astype(np.float64)
    want = x.astype(np.float64) @ back + bias.astype(np.float64)
    np.testing.assert_allclose(
        got.astype(np.float64), want, rtol=2**-8 if dtype != np.float32 else 1e-5, atol=2e-5
    )


@everywhere
@every_algorithm
def test_rows_alone_and_in_a_batch(provider: str, algo: str) -> None:
    codes, scale = quantise(provider, normal(5, (640, 32)), algo, 64)
    linear = {"weight": codes, "bias": None, "weight_scale": scale, "weight_dtype": algo[12:]}
    assert_rows_alone(
        provider, "weight_only_linear", x=normal(6, (7, 640)), **linear, arch=0, group_size=64
    )


@everywhere
def test_sums_to_floats(provider: str) -> None:
    sums = np.array([[2**31 - 1, -(2**31), 3]], np.int32)
    scale = np.array([1.0, 0.5, 1 / 3], np.float32)
    got = run(provider, "dequant_int8", input=sums, out_scale=scale, dtype="float32")["output"]
    np.testing.assert_array_equal(got, np.array([[2.0**31, -(2.0**30), 1.0]], np.float32))


def token_quant(provider: str, x: Any, power: bool = False) -> tuple[Any, Any]:
    found = run(provider, "per_token_quant", input=x, block_size=128, use_ue8m0=power)
    return found["output"].astype(np.float32), found["output_scale"]


@everywhere
@pytest.mark.parametrize("shape", [(4, 512), (8, 512), (8, 1024), (3, 300)], ids=str)
@pytest.mark.parametrize("dtype", TYPES[1:], ids=str)
def test_tokens_to_float8_and_back(provider: str, shape: tuple[int, int], dtype: Any) -> None:
    """Three bits of mantissa: within 2^-4 of every normal value, and a subnormal step of the rest."""
    x = normal(7, shape, dtype)
    wide = x.astype(np.float64)
    codes, scale = token_quant(provider, x)
    steps = np.repeat(scale.astype(np.float64), 128, axis=1)[:, : shape[1]]
    assert (np.abs(codes * steps - wide) <= np.abs(wide) * 2.0**-4 + steps * 2.0**-10).all()
    tops = [np.abs(wide[:, k : k + 128]).max(1) / 448 for k in range(0, shape[1], 128)]
    np.testing.assert_allclose(scale, np.stack(tops, axis=1), rtol=1e-6)
    codes, packed = token_quant(provider, x, power=True)
    exponents = packed.view(np.uint8)[:, : scale.shape[1]].astype(np.float64) - 127
    np.testing.assert_array_equal(exponents, np.ceil(np.log2(scale.astype(np.float64))))
    steps = np.repeat(np.exp2(exponents), 128, axis=1)[:, : shape[1]]
    assert (np.abs(codes * steps - wide) <= np.abs(wide) * 2.0**-4 + steps * 2.0**-10).all()


@everywhere
def test_tokens_at_the_limits(provider: str) -> None:
    """A scale that is a power of two already is not doubled; zeros have the floor's scale; NaN stays."""
    x = np.zeros((3, 256), np.float16)
    x[0, :128], x[0, 5], x[1, 3], x[1, 130] = 1, 448, np.nan, 2
    codes, scale = token_quant(provider, x)
    np.testing.assert_array_equal(scale[0], np.array([1, np.float32(1e-10) / np.float32(448)], np.float32))
    assert np.isnan(codes[1, 3])
    assert np.isnan(codes).sum() == 1
    assert codes[1, 130] == 448
    assert not codes[2].any()
    _, packed = token_quant(provider, x, power=True)
    assert packed.view(np.uint8)[0, 0] == 127
    assert (packed.view(np.uint8)[:, 2:] == 0).all()


@everywhere
def test_a_token_alone_and_in_a_batch(provider: str) -> None:
    x = normal(8, (5, 300), TYPES[1])
    assert_rows_alone(provider, "per_token_quant", input=x, block_size=128, use_ue8m0=False)


def test_refusals_of_per_token_quant() -> None:
    good: dict[str, Any] = {"input": np.ones((2, 128), np.float16), "block_size": 128, "use_ue8m0": False}
    for error, match, change in [
        (ValueError, r"per_token_quant\.block_size: want 128, have 64", {"block_size": 64}),
        (TypeError, r"per_token_quant\.input: want bf", {"input": np.ones((2, 128), np.float32)}),
    ]:
        assert_refused("fd-cpu", "per_token_quant", error, match, **{**good, **change})


X = np.ones((64, 16), np.float32)
BAD_WEIGHTS = [
    ("arch", {"arch": 100}, r"weight_quantize\.arch: want one of .*90.*, have 100"),
    ("algo", {"algo": "llm.int8"}, r"weight_quantize\.algo: want one of .*have .?llm.int8"),
    ("group_size", {"group_size": 32}, r"weight_quantize\.group_size: want one of .*have 32"),
]


@pytest.mark.parametrize(("name", "change", "match"), BAD_WEIGHTS, ids=[n for n, _, _ in BAD_WEIGHTS])
def test_refusals_of_weight_quantize(name: str, change: dict[str, Any], match: str) -> None:
    good = {"x": X, "algo": "weight_only_int8", "arch": 0, "group_size": -1}
    assert change.keys() <= good.keys()
    from fd_core.api.tensor import from_numpy
    from fd_core.ops.catalogue import find

    out, scale = np.full((16, 64), 3, np.int8), np.ones(16, np.float32)
    values = [*{**good, **change}.values(), out, scale]
    with pytest.raises(ValueError, match=match):
        find("weight_quantize").oracle(*values)
    from providers import target

    with pytest.raises(ValueError, match=match):
        target("fd-cpu", "weight_quantize")(
            *(from_numpy(v) if isinstance(v, np.ndarray) else v for v in values)
        )
    assert (out == 3).all()


def test_refusals_of_shapes() -> None:
    codes, scale = np.zeros((16, 64), np.int8), np.ones(16, np.float32)
    good: dict[str, Any] = {"x": X.T.copy(), "weight": codes, "bias": None, "weight_scale": scale}
    good.update(weight_dtype="int8", arch=0, group_size=-1)
    for error, match, change in [
        (ValueError, r"linear\.weight: want size 64 in dimension 1", {"weight": codes[:, :63].copy()}),
        (ValueError, r"linear\.weight_scale: want size 16", {"weight_scale": scale[:15]}),
        (ValueError, r"linear\.weight_scale: want the scales", {"weight_scale": None}),
        (TypeError, r"linear\.weight_scale: want dtype", {"weight_scale": scale.astype(np.float16)}),
        (ValueError, r"linear\.bias: want size 16", {"bias": scale[:3]}),
        (ValueError, r"weight_only_linear\.algo: want one of", {"weight_dtype": "int2"}),
    ]:
        assert_refused("fd-cpu", "weight_only_linear", error, match, **{**good, **change})
    sums = np.ones((2, 8), np.int32)
    with pytest.raises(ValueError, match=r"dequant_int8\.out_scale: want size 8"):
        run("fd-cpu", "dequant_int8", input=sums, out_scale=scale, dtype="float32")
    with pytest.raises(ValueError, match=r"dequant_int8\.dtype: want"):
        run("fd-cpu", "dequant_int8", input=sums, out_scale=scale[:8], dtype="int8")
