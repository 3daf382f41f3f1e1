"""float8 quantisers, scaled products and the packings: against arithmetic written another way."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from agreement import TYPES, assert_agrees, assert_refused, assert_rows_alone
from hypothesis import given, settings
from hypothesis import strategies as st
from providers import PROVIDERS, run

everywhere = pytest.mark.parametrize("provider", PROVIDERS)
F8, BF16 = np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.bfloat16)
half_types = pytest.mark.parametrize("dtype", [BF16, np.dtype(np.float16)], ids=str)
both_scales = pytest.mark.parametrize("power", [False, True], ids=["plain", "ue8m0"])
#: Every float8 value, ascending.
GRID = np.sort(np.arange(256, dtype=np.uint8).view(F8).astype(np.float64)[np.arange(256) % 128 != 127])


def normal(seed: int, shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(dtype)


def is_nearest(codes: Any, exact: Any, slack: float = 0.0) -> bool:
    """No value of the grid is closer to `exact` than the code, but for a relative error in `exact`."""
    value, want = codes.astype(np.float64), np.clip(exact, -448, 448)
    best = np.abs(GRID[:, None] - want.reshape(-1)).min(0).reshape(want.shape)
    return bool((np.abs(value - want) <= best + slack * np.abs(want)).all())


@everywhere
@half_types
@both_scales
@pytest.mark.parametrize("shape", [(4, 512), (8, 512), (8, 1024), (5, 128)], ids=str)
def test_padding_keeps_the_quantiser_of_tokens(
    provider: str, dtype: Any, power: bool, shape: tuple[int, int]
) -> None:
    call = {"input": normal(0, shape, dtype), "block_size": 128, "use_ue8m0": power}
    plain, padded = (
        run(provider, "per_token_quant", **call),
        run(provider, "per_token_quant_padding", **call),
    )
    assert plain["output"].tobytes() == padded["output"].tobytes()
    scale = padded["output_scale"]
    assert scale.shape[0] == -(-shape[0] // 4) * 4
    assert not scale[shape[0] :].any()
    np.testing.assert_array_equal(scale[: shape[0]], plain["output_scale"])


@everywhere
@half_types
@both_scales
def test_masked_rows_are_those_of_the_quantiser(provider: str, dtype: Any, power: bool) -> None:
    x, counts = normal(1, (4, 7, 640), dtype), np.array([7, 0, 9, -3], np.int32)
    call = {"input": x, "recv_expert_count": counts, "block_size": 128, "use_ue8m0": power}
    got = run(provider, "masked_per_token_quant", **call)
    for expert, count in enumerate([7, 0, 7, 0]):
        want = run(provider, "per_token_quant", input=x[expert], block_size=128, use_ue8m0=power)
        for name in ("output", "output_scale"):
            valid, rest = got[name][expert, :count], got[name][expert, count:]
            assert valid.tobytes() == want[name][:count].tobytes()
            assert not rest.astype(np.float32).any()


@both_scales
def test_scales_go_to_the_strides_given(power: bool) -> None:
    """What a reader of column-major scales passes: a transposed view of [G, rows]."""
    from providers import target

    from fd_core.api.tensor import from_numpy

    x = normal(2, (6, 640), BF16)
    want = run("oracle", "per_token_quant_padding", input=x, block_size=128, use_ue8m0=power)
    scale = np.zeros(want["output_scale"].shape[::-1], want["output_scale"].dtype).T
    out = np.zeros(x.shape, F8)
    target("fd-cpu", "per_token_quant_padding")(
        from_numpy(x), 128, power, from_numpy(out), from_numpy(scale)
    )
    assert scale.strides == (4, 32)
    np.testing.assert_array_equal(scale, want["output_scale"])


@everywhere
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("bound", [0.0, 1.5, 310.0])
def test_a_scale_per_token(provider: str, dtype: Any, bound: float) -> None:
    x = normal(3, (9, 61), dtype)
    x[4], x[2, 5] = 0, 320
    call = {
        "out": np.ones(x.shape, F8),
        "input": x,
        "scales": np.ones((9, 1), np.float32),
        "scale_ub": bound,
    }
    got = run(provider, "dynamic_per_token_scaled_fp8_quant", **call)
    wide = x.astype(np.float64)
    tops = np.minimum(np.abs(wide).max(1), bound if bound > 0 else np.inf)
    np.testing.assert_allclose(got["scales"][:, 0], tops / 448, rtol=1e-6)
    steps = np.where(got["scales"] == 0, 1, got["scales"]).astype(np.float64)
    assert is_nearest(got["out"], wide / steps, 2.0**-23)
    assert not got["out"][4].astype(np.float32).any()


@everywhere
def test_a_scale_per_token_of_a_bigger_buffer(provider: str) -> None:
    x = normal(4, (3, 8))
    call = {"out": np.ones((5, 8), F8), "input": x, "scales": np.ones(6, np.float32), "scale_ub": 0.0}
    got = run(provider, "dynamic_per_token_scaled_fp8_quant", **call)
    assert not got["out"][3:].astype(np.float32).any()
    assert not got["scales"][3:].any()
    assert (got["scales"][:3] > 0).all()


@everywhere
def test_what_is_not_finite_stays_in_its_row(provider: str) -> None:
    x = normal(5, (4, 24))
    clean = {"out": np.ones(x.shape, F8), "input": x, "scales": np.ones(4, np.float32), "scale_ub": 0.0}
    want = run(provider, "dynamic_per_token_scaled_fp8_quant", **clean)
    spoilt = x.copy()
    spoilt[1, 3], spoilt[2, 5] = np.nan, np.inf
    got = run(provider, "dynamic_per_token_scaled_fp8_quant", **{**clean, "input": spoilt})
    for row in (0, 3):
        assert got["out"][row].tobytes() == want["out"][row].tobytes()
    assert np.isnan(got["out"][1, 3].astype(np.float32))
    assert np.isinf(got["scales"][2])
    assert np.isfinite(np.delete(got["out"][1].astype(np.float32), 3)).all()


@everywhere
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_a_scale_per_tensor(provider: str, dtype: Any) -> None:
    x = normal(6, (3, 50), dtype)
    call = {"out": np.ones(x.shape, F8), "input": x, "scale": np.zeros(1, np.float32)}
    got = run(provider, "dynamic_scaled_fp8_quant", **call)
    scale = float(got["scale"][0])
    assert scale == np.float32(np.abs(x.astype(np.float32)).max()) / np.float32(448)
    assert is_nearest(got["out"], x.astype(np.float64) / scale, 2.0**-22)
    again = run(provider, "static_scaled_fp8_quant", **{**call, "scale": got["scale"]})
    assert again["out"].tobytes() == got["out"].tobytes()
    floor = run(provider, "dynamic_scaled_fp8_quant", **{**call, "scale": np.array([2], np.float32)})
    assert floor["scale"][0] == 2
    assert is_nearest(floor["out"], x.astype(np.float64) / 2)


@everywhere
def test_zeros_have_code_zero(provider: str) -> None:
    call = {"out": np.ones((2, 20), F8), "input": np.zeros((2, 20), np.float32)}
    got = run(provider, "dynamic_scaled_fp8_quant", **call, scale=np.zeros(1, np.float32))
    assert got["scale"][0] == 0
    assert not got["out"].astype(np.float32).any()


@everywhere
@pytest.mark.parametrize("shape", [(1024,), (3, 64)], ids=str)
def test_hadamard_is_the_matrix(provider: str, shape: tuple[int, ...]) -> None:
    """Small integers: every butterfly is exact in bfloat16, so the matrix product is the answer."""
    x = np.random.default_rng(7).integers(-4, 5, shape).astype(BF16)
    matrix = np.ones((1, 1))
    for _ in range(5):
        matrix = np.kron(np.array([[1, 1], [1, -1]]), matrix)
    want = (x.reshape(-1, 32).astype(np.float64) @ matrix).reshape(shape)
    got = run(provider, "fused_hadamard_quant_fp8", input=x, scale=0.5)["output"]
    assert is_nearest(got, want / 0.5)


@everywhere
@pytest.mark.parametrize("kind", [np.dtype(np.int8), F8], ids=str)
@pytest.mark.parametrize("shape", [(32, 1024, 512), (1, 16, 16), (7, 48, 80)], ids=str)
def test_scaled_product(provider: str, kind: Any, shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    rng = np.random.default_rng(8)
    a, b = (rng.integers(-100, 100, (rows, k)).astype(np.float32).astype(kind) for rows in (m, n))
    a_s, b_s = rng.random((m, 1), np.float32), rng.random((n, 1), np.float32)
    bias = rng.standard_normal(n).astype(BF16)
    call = {"c": np.zeros((m, n), BF16), "a": a, "b": b, "a_scales": a_s, "b_scales": b_s, "bias": bias}
    got = run(provider, "cutlass_scaled_mm", **call)["c"].astype(np.float64)
    sums = np.einsum("mk,nk->mn", a.astype(np.float64), b.astype(np.float64))
    want = sums * a_s * b_s.T + bias.astype(np.float64)
    # Half a unit of bfloat16, and of float32 chains over what cancels.
    size = np.abs(a.astype(np.float64)) @ np.abs(b.astype(np.float64)).T * a_s * b_s.T
    assert (np.abs(got - want) <= 2.0**-8 * np.abs(want) + (k + 8) * 2.0**-24 * size).all()


@everywhere
def test_int8_sums_are_exact_at_the_limits(provider: str) -> None:
    a, b = np.full((5, 4096), -128, np.int8), np.full((16, 4096), -128, np.int8)
    b[3] = 127
    one = np.ones(1, np.float32)
    call = {"c": np.zeros((5, 16), BF16), "a": a, "b": b, "a_scales": one, "b_scales": one, "bias": None}
    got = run(provider, "cutlass_scaled_mm", **call)["c"].astype(np.float64)
    assert (np.delete(got, 3, 1) == 2.0**26).all()
    assert (got[:, 3] == float(np.float32(-128 * 127 * 4096).astype(BF16))).all()


@everywhere
def test_product_scaled_by_blocks(provider: str) -> None:
    rng = np.random.default_rng(9)
    m, n, k = 6, 272, 400
    a, b = (rng.standard_normal((rows, k)).astype(F8) for rows in (m, n))
    a_s, b_s = (
        rng.uniform(0.1, 1, (m, 4)).astype(np.float32),
        rng.uniform(0.1, 1, (4, 3)).astype(np.float32),
    )
    call = {
        "c": np.zeros((m, n), np.float16),
        "a": a,
        "b": b,
        "a_scales": a_s,
        "b_scales": b_s,
        "bias": None,
    }
    got = run(provider, "cutlass_scaled_mm", **call)["c"].astype(np.float64)
    wide_a = a.astype(np.float64) * np.repeat(a_s, 128, 1)[:, :k]
    wide_b = b.astype(np.float64) * np.repeat(np.repeat(b_s, 128, 0)[:k].T, 128, 0)[:n]
    np.testing.assert_allclose(got, wide_a @ wide_b.T, rtol=2**-10, atol=1e-3)


@everywhere
@pytest.mark.parametrize("kind", [np.dtype(np.int8), F8], ids=str)
def test_a_row_of_a_product_alone(provider: str, kind: Any) -> None:
    rng = np.random.default_rng(10)
    a, b = (rng.integers(-9, 9, (rows, 96)).astype(np.float32).astype(kind) for rows in (7, 32))
    scales = {"a_scales": rng.random((7, 1), np.float32), "b_scales": rng.random(32, np.float32)}
    assert_rows_alone(
        provider, "cutlass_scaled_mm", c=np.zeros((7, 32), BF16), a=a, b=b, **scales, bias=None
    )


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 9), st.sampled_from([16, 48, 272]), st.sampled_from([0, 16, 144, 400]),
    st.booleans(), st.booleans(), st.integers(0, 2**31),
)  # fmt: skip
def test_products_agree(m: int, n: int, k: int, eight: bool, blocks: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    kind = np.dtype(np.int8) if eight else F8
    a, b = (rng.integers(-100, 100, (rows, k)).astype(np.float32).astype(kind) for rows in (m, n))
    shapes = ((m, -(-k // 128)), (-(-k // 128), -(-n // 128))) if blocks and not eight else ((m, 1), (n,))
    a_s, b_s = (rng.uniform(0, 1e-4, s).astype(np.float32) for s in shapes)
    c = np.zeros((m, n), BF16)
    assert_agrees("cutlass_scaled_mm", c=c, a=a, b=b, a_scales=a_s, b_scales=b_s, bias=None)


@everywhere
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", [(16, 64), (64, 128), (128, 256)], ids=str)
@pytest.mark.parametrize("permuted", [False, True])
def test_marlin_tiles_hold_the_codes(
    provider: str, bits: int, shape: tuple[int, int], permuted: bool
) -> None:
    """Code by code, by the layout's published formulas."""
    (k, n), pack = shape, 32 // bits
    rng = np.random.default_rng(11)
    codes = rng.integers(0, 2**bits, (k, n)).astype(np.uint64)
    rows = codes.reshape(k // pack, pack, n)
    words = sum(rows[:, i] << np.uint64(bits * i) for i in range(pack))
    perm = rng.permutation(k).astype(np.int32) if permuted else np.empty(0, np.int32)
    call = {"perm": perm, "size_k": k, "size_n": n, "num_bits": bits}
    packed = np.asarray(words).astype(np.uint32).view(np.int32)
    out = run(provider, "gptq_marlin_repack", b_q_weight=packed, **call)["out"]
    assert out.shape == (k // 16, n * 16 // pack)
    flat = out.reshape(-1).view(np.uint32)
    for kk, nn in rng.integers(0, [k, n], (200, 2)):
        tile, r, warp, c = kk // 16 * (n // 64) + nn // 64, kk % 16, nn % 64 // 16, nn % 16
        lane, i, half = c % 8 * 4 + r % 8 // 2, r % 2 + 2 * (r // 8), c // 8
        if bits == 4:
            word, slot = tile * 128 + lane * 4 + warp, [0, 2, 4, 6, 1, 3, 5, 7].index(i + 4 * half)
        else:
            word, slot = tile * 256 + lane * 8 + warp * 2 + half, [0, 2, 1, 3].index(i)
        source = perm[kk] if permuted else kk
        assert flat[word] >> bits * slot & (2**bits - 1) == codes[source, nn]


def unzip_one(call: dict[str, Any], e: int, k: int, n: int) -> float:
    """Element (k, n) of winx_unzip's answer before its last rounding."""
    scale = float(call["super_scale"].reshape(len(call["super_scale"]), -1)[e, n])
    if call["quant_method"] == "weight_only_int2.5":
        words = call["zipped_weight"].view(np.uint16)[e, k // 64 * 10 : k // 64 * 10 + 10, n].astype(int)
        row, j = divmod(k % 64, 7)
        code = words[row] >> [13, 11, 9, 6, 4, 2, 0][j] & 7
        return float(code - 4) * float(np.float32((words[9] & 0x1FFF) * scale))
    byte = float(call["zipped_weight"][e, k // 4, n])
    cs, zp = (float(call[x].reshape(len(call[x]), -1)[e, n]) for x in ("code_scale", "code_zp"))
    code = int(np.floor(byte * cs + zp + 0.5))
    local = int(call["local_scale"][e, k // 128, n]) >> (4 if k // 64 % 2 == 0 else 0) & 15
    return float(np.float32(local * scale)) * ((code >> [9, 6, 3, 0][k % 4] & 63) - 32)


@everywhere
@pytest.mark.parametrize("index", range(7))
def test_unzipped_weights(provider: str, index: int) -> None:
    from fd_core.ops.catalogue import find

    rng = np.random.default_rng(12)
    call = find("winx_unzip").cases[index].args(rng, np.dtype(np.float16))
    got = run(provider, "winx_unzip", **call)["weight"]
    for e, k, n in rng.integers(0, np.maximum(got.shape, 1), (200, 3)) if got.size else ():
        assert got[e, k, n] == np.float32(unzip_one(call, e, k, n)).astype(np.float16), (e, k, n)


ONES = np.ones((2, 128), np.float16)
Z2 = {"zipped_weight": np.zeros((1, 32, 8), np.uint8), "local_scale": np.zeros((1, 1, 8), np.uint8),
      "code_scale": np.ones((1, 8), np.float32), "code_zp": np.ones((1, 8), np.float32),
      "super_scale": np.ones((1, 8), np.float16), "quant_method": "weight_only_int2"}  # fmt: skip
MM = {"c": np.ones((2, 16), BF16), "a": np.ones((2, 16), np.int8), "b": np.ones((16, 16), np.int8),
      "a_scales": np.ones(2, np.float32), "b_scales": np.ones(1, np.float32), "bias": None}  # fmt: skip
MARLIN = {"b_q_weight": np.zeros((2, 64), np.int32), "perm": np.empty(0, np.int32), "size_k": 16,
          "size_n": 64, "num_bits": 4}  # fmt: skip
TENSOR = {"out": np.ones((2, 128), F8), "input": ONES, "scale": np.ones(1, np.float32)}
TOKEN = {"out": np.ones((2, 128), F8), "input": ONES, "scales": np.ones(2, np.float32), "scale_ub": 0.0}
PADDED = {"input": ONES, "block_size": 128, "use_ue8m0": False}
MASKED = {"input": ONES[None], "recv_expert_count": np.ones(1, np.int32), "block_size": 128,
          "use_ue8m0": False}  # fmt: skip
REFUSED: list[tuple[str, type[Exception], str, dict[str, Any], dict[str, Any]]] = [
    ("per_token_quant_padding", ValueError, r"block_size: want 128, have 64", PADDED, {"block_size": 64}),
    ("per_token_quant_padding", ValueError, r"input: want columns", PADDED, {"input": ONES[:, :64].copy()}),
    ("per_token_quant_padding", TypeError, r"input: want bf", PADDED, {"input": ONES.astype(np.float32)}),
    ("masked_per_token_quant", ValueError, r"recv_expert_count: want size 1", MASKED,
     {"recv_expert_count": np.ones(2, np.int32)}),
    ("masked_per_token_quant", TypeError, r"recv_expert_count: want dtype int32", MASKED,
     {"recv_expert_count": np.ones(1, np.int64)}),
    ("dynamic_per_token_scaled_fp8_quant", ValueError, r"scales: want at least 2", TOKEN,
     {"scales": np.ones(1, np.float32)}),
    ("dynamic_per_token_scaled_fp8_quant", ValueError, r"out: want at least 2 rows", TOKEN,
     {"out": np.ones((1, 128), F8)}),
    ("static_scaled_fp8_quant", ValueError, r"scale: want a number above 0", TENSOR,
     {"scale": np.zeros(1, np.float32)}),
    ("static_scaled_fp8_quant", TypeError, r"out: want dtype float8", TENSOR, {"out": ONES}),
    ("dynamic_scaled_fp8_quant", ValueError, r"scale: want 1 elements", TENSOR,
     {"scale": np.ones(2, np.float32)}),
    ("fused_hadamard_quant_fp8", ValueError, r"input: want a multiple of 32",
     {"input": np.ones(33, BF16), "scale": 1.0}, {}),
    ("fused_hadamard_quant_fp8", ValueError, r"scale: want a finite",
     {"input": np.ones(32, BF16), "scale": 0.0}, {}),
    ("cutlass_scaled_mm", ValueError, r"a: want K a multiple of 16", MM,
     {"a": np.ones((2, 8), np.int8), "b": np.ones((16, 8), np.int8)}),
    ("cutlass_scaled_mm", ValueError, r"a_scales: want", MM, {"a_scales": np.ones(3, np.float32)}),
    ("cutlass_scaled_mm", ValueError, r"a_scales: want per row with int8", MM,
     {"a_scales": np.ones((2, 2), np.float32), "b_scales": np.ones((2, 2), np.float32)}),
    ("cutlass_scaled_mm", TypeError, r"b: want dtype", MM, {"b": np.ones((16, 16), F8)}),
    ("cutlass_scaled_mm", TypeError, r"bias: want dtype", MM, {"bias": np.ones(16, np.float16)}),
    ("gptq_marlin_repack", ValueError, r"num_bits: want 4 or 8", MARLIN, {"num_bits": 3}),
    ("gptq_marlin_repack", ValueError, r"size_n: want a multiple", MARLIN, {"size_n": 32}),
    ("gptq_marlin_repack", ValueError, r"perm: want indices in \[0, 16\), have 16 at position 3", MARLIN,
     {"perm": np.array([0, 1, 2, 16] * 4, np.int32)}),
    ("winx_unzip", ValueError, r"quant_method: want", Z2, {"quant_method": "int3"}),
    ("winx_unzip", ValueError, r"local_scale: want", Z2, {"local_scale": None}),
    ("winx_unzip", ValueError, r"code_zp: want", Z2, {"code_zp": None}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "error", "match", "good", "change"), REFUSED)
def test_refusals(
    name: str, error: type[Exception], match: str, good: dict[str, Any], change: dict[str, Any]
) -> None:
    assert_refused("fd-cpu", name, error, rf"{name}\.{match}", **{**good, **change})


@pytest.mark.parametrize(("capacity", "power", "strides"), [(6, False, (30, 1, 6)), (6, True, (16, 1, 8))])
def test_the_public_call_allocates_scales_in_the_readers_order(
    capacity: int, power: bool, strides: tuple[int, ...]
) -> None:
    from providers import target

    from fd_core import ops

    target("fd-cpu", "masked_per_token_quant")
    x, counts = normal(13, (3, capacity, 640), np.float16), np.array([6, 2, 0], np.int32)
    got = ops.masked_per_token_quant(x, counts, 128, power)
    want = run("oracle", "masked_per_token_quant", input=x, recv_expert_count=counts, block_size=128,
               use_ue8m0=power)  # fmt: skip
    assert tuple(s // 4 for s in got[1].strides) == strides
    np.testing.assert_array_equal(got[1], want["output_scale"])
    padded = ops.per_token_quant_padding(x[0], 128, power)[1]
    assert padded.strides == (4, 4 * 8)
    assert padded.shape == (8, 2 if power else 5)
