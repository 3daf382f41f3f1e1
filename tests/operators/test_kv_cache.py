"""reshape_and_cache_flash: bits kept, codes and scales of the float8 cache, refusals."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from agreement import TYPES, assert_agrees, assert_refused
from hypothesis import given, settings
from hypothesis import strategies as st
from providers import PROVIDERS, run, same, target

from fd_core.api.tensor import from_numpy

OP = "reshape_and_cache_flash"
everywhere = pytest.mark.parametrize("provider", PROVIDERS)
every_type = pytest.mark.parametrize("dtype", TYPES, ids=str)
FP8 = "fp8_e4m3"


def made(
    tokens: int = 7,
    heads: int = 2,
    dim: int = 24,
    size: int = 4,
    dtype: Any = np.float32,
    mode: str = "auto",
    seed: int = 0,
    cache: Any = None,
) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    shape = (tokens // size + 2, size, heads, dim)
    kind = np.uint8 if mode == FP8 else cache or dtype
    scale = [np.full(shape[:3], 7, np.float32) if mode == FP8 else None for _ in range(2)]
    slots = rng.permutation(shape[0] * size)[:tokens].astype(np.int64)
    slots[::3] = -1 - slots[::3]  # any negative number skips
    key, value = (rng.standard_normal((tokens, heads, dim)).astype(dtype) for _ in range(2))
    pools = [np.full(shape, 3, kind) for _ in range(2)]
    return {
        "key": key, "value": value, "key_cache": pools[0], "value_cache": pools[1], "slot_mapping": slots,
        "k_scale": scale[0], "v_scale": scale[1], "kv_cache_dtype": mode,
    }  # fmt: skip


@everywhere
@every_type
@pytest.mark.parametrize("mode", ["auto", ""])
def test_tokens_land_in_their_slots_and_nothing_else_changes(provider: str, dtype: Any, mode: str) -> None:
    inputs = made(dtype=dtype, mode=mode)
    inputs["key"].view(np.uint8)[1, 0, :8] = 0xFF  # NaN payloads are bits like others
    got = run(provider, OP, **inputs)
    for name in ("key", "value"):
        want = inputs[name + "_cache"].copy()
        for token, slot in enumerate(inputs["slot_mapping"]):
            if slot >= 0:
                want[slot // 4, slot % 4] = inputs[name][token]
        assert same(got[name + "_cache"], want)


@everywhere
@every_type
def test_fp8_codes_read_back_close(provider: str, dtype: Any) -> None:
    inputs = made(40, 3, 64, 16, dtype, FP8)
    got = run(provider, OP, **inputs)
    seen = inputs["slot_mapping"] >= 0
    block, offset = np.divmod(inputs["slot_mapping"][seen], 16)
    for name, scale in (("key", "k_scale"), ("value", "v_scale")):
        rows = inputs[name][seen].astype(np.float32)
        top = np.abs(rows).max(-1)
        np.testing.assert_allclose(got[scale][block, offset], top / 448, rtol=1e-6)
        codes = got[name + "_cache"][block, offset].view(ml_dtypes.float8_e4m3fn).astype(np.float32)
        read = codes * got[scale][block, offset][..., None]
        assert (np.abs(read - rows) <= top[..., None] * 2**-4).all()
        assert (
            np.abs(read - rows) <= np.maximum(np.abs(rows) * 2**-4, top[..., None] / 448 * 2**-10) * 1.001
        ).all()
    assert (got["k_scale"] == 7).sum() == got["k_scale"].size - 3 * seen.sum()  # others untouched


@everywhere
def test_fp8_of_zeros_has_the_smallest_scale(provider: str) -> None:
    inputs = made(1, 1, 8, 4, np.float32, FP8) | {"slot_mapping": np.array([2], np.int64)}
    inputs["key"][...] = 0
    got = run(provider, OP, **inputs)
    assert got["k_scale"][0, 2, 0] == np.float32(1e-12)
    assert not got["key_cache"][0, 2].any()


@everywhere
def test_fp8_rounds_every_value_as_the_type_does(provider: str) -> None:
    """All codes, the points between them and values beyond: absmax 448 makes the scale 1."""
    codes = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    exact = np.sort(codes[np.isfinite(codes)])
    between = (exact[1:] + exact[:-1]) / 2
    values = np.concatenate([exact, between, np.nextafter(between, np.inf), np.nextafter(between, -np.inf)])
    values = np.resize(values, (-(-values.size // 7), 7)).astype(np.float32)
    rows = np.concatenate([values, np.full((len(values), 1), 448, np.float32)], axis=1)[:, None]
    tokens = len(rows)
    inputs = made(tokens, 1, 8, 16, np.float32, FP8) | {"key": rows, "slot_mapping": np.arange(tokens)}
    got = run(provider, OP, **inputs)["key_cache"].reshape(-1, 8)[:tokens]
    assert same(got, rows[:, 0].astype(ml_dtypes.float8_e4m3fn).view(np.uint8))


@everywhere
def test_float32_goes_into_a_narrow_cache_with_one_rounding(provider: str) -> None:
    for kind in (ml_dtypes.bfloat16, np.float16):
        inputs = made(cache=kind) | {"slot_mapping": np.arange(7)}
        got = run(provider, OP, **inputs)["value_cache"].reshape(-1, 2, 24)[:7]
        assert same(got, inputs["value"].astype(kind))


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(0, 40),
    heads=st.integers(1, 5),
    dim=st.integers(1, 20).map(lambda n: 8 * n),
    size=st.sampled_from([1, 3, 16, 64]),
    dtype=st.sampled_from(TYPES),
    mode=st.sampled_from(["auto", FP8]),
    seed=st.integers(0, 2**31),
)
def test_kernel_agrees(**shape: Any) -> None:
    assert_agrees(OP, **made(**shape))


@pytest.mark.parametrize("mode", ["auto", FP8])
def test_strides_of_rows_and_of_each_pool(mode: str) -> None:
    inputs = made(9, 3, 16, 4, np.float32, mode)
    want = run("fd-cpu", OP, **inputs)
    qkv = np.full((9, 5, 3, 16), np.nan, np.float32)
    qkv[:, 1], qkv[:, 3] = inputs["key"], inputs["value"]
    head_major = np.ascontiguousarray(inputs["key_cache"].transpose(0, 2, 1, 3))
    padded = np.zeros((*inputs["value_cache"].shape[:3], 32), inputs["value_cache"].dtype)
    padded[..., :16] = inputs["value_cache"]
    call = inputs | {"key": qkv[:, 1], "value": qkv[:, 3]}
    call |= {"key_cache": head_major.transpose(0, 2, 1, 3), "value_cache": padded[..., :16]}
    target("fd-cpu", OP)(*(from_numpy(v) if isinstance(v, np.ndarray) else v for v in call.values()))
    assert same(call["key_cache"], want["key_cache"])
    assert same(padded[..., :16], want["value_cache"])
    assert not padded[..., 16:].any()


@everywhere
@pytest.mark.parametrize("mode", ["auto", FP8])
def test_a_slot_beyond_the_cache_is_refused_before_anything_is_written(provider: str, mode: str) -> None:
    inputs = made(mode=mode)
    inputs["slot_mapping"][-1] = 3 * 4
    assert_refused(provider, OP, ValueError, r"slot_mapping: .*below 12, have 12", **inputs)


@everywhere
def test_an_unknown_cache_type_is_refused(provider: str) -> None:
    inputs = made() | {"kv_cache_dtype": "int3"}
    assert_refused(provider, OP, ValueError, r"kv_cache_dtype: want .*auto.*, have .int3.", **inputs)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"value": np.zeros((7, 2, 16), np.float32)}, ValueError, r"value: want size 24 in dimension 2"),
        ({"value": np.zeros((7, 2, 24), np.float16)}, TypeError, r"value: want dtype float32"),
        ({"key_cache": np.zeros((3, 4, 2, 24), np.uint8)}, TypeError, r"key_cache: want dtype float32"),
        ({"value_cache": np.zeros((3, 4, 1, 24), np.float32)}, ValueError, r"value_cache: want size 2"),
        ({"slot_mapping": np.zeros(7, np.int32)}, TypeError, r"slot_mapping: want dtype int64, have int32"),
        ({"slot_mapping": np.zeros(6, np.int64)}, ValueError, r"slot_mapping: want size 7"),
        ({"kv_cache_dtype": FP8}, TypeError, r"key_cache: want dtype uint8"),
    ],
)
def test_bad_arguments_are_refused(changes: dict[str, Any], error: Any, match: str) -> None:
    assert_refused("fd-cpu", OP, error, match, **made() | changes)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"k_scale": None}, ValueError, r"k_scale: want a tensor with fp8_e4m3, have None"),
        ({"v_scale": np.zeros((3, 4, 2))}, TypeError, r"v_scale: want dtype float32, have float64"),
        ({"v_scale": np.zeros((3, 2, 4), np.float32)}, ValueError, r"v_scale: want size 4 in dimension 1"),
    ],
)
def test_bad_scales_are_refused(changes: dict[str, Any], error: Any, match: str) -> None:
    assert_refused("fd-cpu", OP, error, match, **made(mode=FP8) | changes)


def test_a_head_dimension_of_12_is_refused() -> None:
    assert_refused("fd-cpu", OP, ValueError, "multiple of 8, have 12", **made(dim=12))
