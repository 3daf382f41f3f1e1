"""moe_expert_ffn with quantised weights: against the plain op on what the codes stand for, and alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from agreement import TYPES, assert_agrees, assert_refused
from hypothesis import given, settings
from hypothesis import strategies as st
from providers import PROVIDERS, run, same

everywhere = pytest.mark.parametrize("provider", PROVIDERS)
bounded = settings(max_examples=20, deadline=None)
seeds = st.integers(0, 2**31)
NONE = dict.fromkeys(("up_gate_proj_bias", "down_proj_in_scale", "expert_idx_per_token"))
PACKED = {"arch": 80, "group_size": -1}
CODES = ("weight_only_int8", "weight_only_int4")
WEIGHTS = ("up_gate_proj", "down_proj")


def normal(seed: int, shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(dtype)


def plain(seed: int, experts: int, hidden: int, inner: int) -> list[Any]:
    """Up and down [E, in, out]."""
    sizes = ((hidden, 2 * inner), (inner, hidden))
    return [normal(seed + i, (experts, *s)) / np.float32(s[0] ** 0.5) for i, s in enumerate(sizes)]


def quantised(matrices: list[Any], algo: str, kind: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of the op with codes, and those with the weights that these stand for."""
    codes, weights = {}, {"up_gate_proj_scale": None, "down_proj_scale": None}
    for name, stack in zip(WEIGHTS, matrices, strict=True):
        made = [run("oracle", "weight_quantize", x=m.astype(kind), algo=algo, **PACKED) for m in stack]
        codes[f"{name}_weight"] = np.stack([one["out"] for one in made])
        codes[f"{name}_scale"] = np.stack([one["scale"] for one in made])
        flags = {"algo": algo, "out_dtype": "float16", "group_size": -1}
        weights[f"{name}_weight"] = np.stack(
            [run("oracle", "weight_dequantize", x=o["out"], scale=o["scale"], **flags)["out"] for o in made]
        )
    return codes, weights


def rows_of_int8(matrices: list[Any], kind: Any) -> dict[str, Any]:
    """Each output's largest weight is 127."""
    found: dict[str, Any] = {}
    for name, stack in zip(WEIGHTS, matrices, strict=True):
        turned = stack.transpose(0, 2, 1)
        scale = (np.abs(turned).max(2) / 127).astype(kind)
        codes = np.rint(turned / scale.astype(np.float32)[..., None])
        found |= {f"{name}_weight": np.clip(codes, -127, 127).astype(np.int8), f"{name}_scale": scale}
    return found


def ffn(provider: str, x: Any, counts: list[int], weights: dict[str, Any], method: str, **more: Any) -> Any:
    arguments = {**NONE, **weights, "quant_method": method, "used_in_ep_low_latency": False, **more}
    sums = np.array(counts if arguments["used_in_ep_low_latency"] else np.cumsum(counts), np.int64)
    found = run(
        provider, "moe_expert_ffn", permute_input=x, tokens_expert_prefix_sum=sums, **arguments
    )  # fmt: skip
    return found["out"]


@everywhere
@pytest.mark.parametrize("algo", CODES)
@pytest.mark.parametrize("kind", TYPES, ids=str)
@pytest.mark.parametrize("low", [False, True])
def test_codes_are_the_plain_call_on_their_weights(provider: str, algo: str, kind: Any, low: bool) -> None:
    """To the bit: nothing but where a weight comes from differs."""
    counts = [3, 0, 1, 40]
    codes, weights = quantised(plain(0, 4, 320, 64), algo, kind)
    shape = (4, max(counts) + 1, 320) if low else (sum(counts) + 2, 320)
    x, bias = normal(2, shape, kind), normal(3, (4, 128), kind)
    more = {"used_in_ep_low_latency": low, "up_gate_proj_bias": bias}
    got = ffn(provider, x, counts, codes, algo, **more)
    assert same(got, ffn(provider, x, counts, weights, "none", **more))
    assert (got[:, -1] == 0).all() if low else (got[-2:] == 0).all()


@bounded
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=4), st.sampled_from([64, 128]),
    st.sampled_from([64, 192]), st.sampled_from(CODES), seeds,
)  # fmt: skip
def test_codes_agree(counts: list[int], hidden: int, inner: int, algo: str, seed: int) -> None:
    kind = TYPES[seed % 3]
    codes, _ = quantised(plain(seed, len(counts), hidden, inner), algo, kind)
    assert_agrees(
        "moe_expert_ffn",
        permute_input=normal(seed + 2, (sum(counts), hidden), kind),
        tokens_expert_prefix_sum=np.cumsum(counts),
        quant_method=algo,
        used_in_ep_low_latency=False,
        **{**NONE, **codes, "up_gate_proj_bias": normal(seed + 3, (len(counts), 2 * inner), kind)},
    )


@bounded
@given(st.lists(st.integers(0, 20), min_size=1, max_size=4), st.integers(1, 300), st.integers(1, 90), seeds)
def test_w8a8_agrees(counts: list[int], hidden: int, inner: int, seed: int) -> None:
    """The second matrix is an eighth of the first, as the op's tolerance asks."""
    kind = TYPES[1 + seed % 2]
    up, down = plain(seed, len(counts), hidden, inner)
    bias = normal(seed + 3, (len(counts), 2 * inner), kind) if seed % 3 else None
    assert_agrees(
        "moe_expert_ffn",
        permute_input=normal(seed + 2, (sum(counts) + 1, hidden), kind),
        tokens_expert_prefix_sum=np.cumsum(counts),
        quant_method="w8a8",
        used_in_ep_low_latency=False,
        **{**NONE, **rows_of_int8([up, down / 8], kind), "up_gate_proj_bias": bias},
    )


@everywhere
def test_w8a8_is_exact_where_integers_are(provider: str) -> None:
    """Rows of integers with a largest of 127 are their own codes; a gate of 40 passes the value whole."""
    rng = np.random.default_rng(5)
    x = rng.integers(-127, 128, (3, 70)).astype(np.float32)
    x[:, 0] = 127
    up = np.zeros((1, 2 * 4, 70), np.int8)
    up[0, :4, 0] = 40  # the gate: 40 * 127 * scale
    up[0, 4:] = rng.integers(-127, 128, (4, 70))
    scale = np.full((1, 8), 1 / 127, np.float32)
    down = np.zeros((1, 70, 4), np.int8)
    down[0, :4] = np.eye(4) * 127
    weights = {"up_gate_proj_weight": up, "up_gate_proj_scale": scale}
    weights |= {"down_proj_weight": down, "down_proj_scale": np.full((1, 70), 1 / 127, np.float32)}
    got = ffn(provider, x, [3], weights, "w8a8")
    value = 40 * (x.astype(np.int64) @ up[0, 4:].T.astype(np.int64)) / 127
    step = np.abs(value).max(1, keepdims=True) / 127
    want = np.rint(value / step) * step
    np.testing.assert_allclose(got[:, :4], want, rtol=1e-5)
    assert not got[:, 4:].any()


@everywhere
def test_w8a8_is_near_the_plain_product(provider: str) -> None:
    """The specification's acceptance: a cosine above 0.999 on random data."""
    counts, kind = [5, 0, 27], TYPES[1]
    matrices = plain(7, 3, 256, 96)
    x = normal(8, (32, 256), kind)
    got = ffn(provider, x, counts, rows_of_int8(matrices, kind), "w8a8").astype(np.float64).ravel()
    weights: dict[str, Any] = {"up_gate_proj_scale": None, "down_proj_scale": None}
    weights |= {f"{n}_weight": m for n, m in zip(WEIGHTS, matrices, strict=True)}
    want = ffn("oracle", x, counts, weights, "none").astype(np.float64).ravel()
    assert got @ want / np.sqrt((got @ got) * (want @ want)) > 0.999


@everywhere
@pytest.mark.parametrize("method", [*CODES, "w8a8"])
def test_rows_alone(provider: str, method: str) -> None:
    counts, kind = [4, 0, 30], TYPES[1]
    matrices = plain(9, 3, 128, 64)
    weights = rows_of_int8(matrices, kind) if method == "w8a8" else quantised(matrices, method, kind)[0]
    x = normal(10, (34, 128), kind)
    whole = ffn(provider, x, counts, weights, method)
    for row, alone in ((0, [1, 0, 0]), (3, [1, 0, 0]), (4, [0, 0, 1]), (33, [0, 0, 1])):
        assert same(ffn(provider, x[row : row + 1], alone, weights, method)[0], whole[row])


@everywhere
def test_w8a8_zeros_and_what_is_not_finite(provider: str) -> None:
    kind = TYPES[1]
    weights, x = rows_of_int8(plain(11, 1, 40, 24), kind), normal(12, (4, 40), kind)
    clean = ffn(provider, x, [4], weights, "w8a8")
    x[1], x[2, 5] = 0, np.inf
    got = ffn(provider, x, [4], weights, "w8a8")
    assert not got[1].any()
    assert np.isnan(got[2].astype(np.float32)).all()
    assert same(got[[0, 3]], clean[[0, 3]])


BASE = {
    **NONE, "permute_input": normal(0, (3, 64)), "tokens_expert_prefix_sum": np.array([1, 3]),
    "up_gate_proj_weight": np.zeros((2, 128, 64), np.int8), "up_gate_proj_scale": np.ones((2, 128), "f4"),
    "down_proj_weight": np.zeros((2, 64, 64), np.int8), "down_proj_scale": np.ones((2, 64), "f4"),
    "quant_method": "weight_only_int8", "used_in_ep_low_latency": False,
}  # fmt: skip


@everywhere
@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"quant_method": "w4a8"}, r"quant_method: want one of .*weight_only_int4.*have .w4a8"),
        (
            {"up_gate_proj_scale": None},
            r"up_gate_proj_scale: want the scales of weight_only_int8, have None",
        ),
        ({"quant_method": "w8a8", "down_proj_scale": None}, "down_proj_scale: want the scales of w8a8"),
        ({"down_proj_in_scale": np.ones(2, "f4")}, "want no down_proj_in_scale with quant_method"),
    ],
)
def test_refused_everywhere(provider: str, change: dict[str, Any], why: str) -> None:
    assert_refused(provider, "moe_expert_ffn", ValueError, why, **{**BASE, **change})


@pytest.mark.parametrize(
    ("change", "error", "why"),
    [
        ({"down_proj_weight": np.zeros((2, 64, 32), np.int8)}, ValueError, "down_proj_weight: want size"),
        ({"up_gate_proj_scale": np.ones((2, 64), "f4")}, ValueError, "up_gate_proj_scale: want 256"),
        ({"up_gate_proj_scale": np.ones((2, 128), "f2")}, TypeError, "up_gate_proj_scale: want dtype"),
        ({"up_gate_proj_weight": np.zeros((2, 127, 64), np.int8)}, ValueError, "an even number of outputs"),
        (
            {n: BASE[n].view(np.uint8) for n in ("up_gate_proj_weight", "down_proj_weight")},
            TypeError,
            "up_gate_proj_weight: want dtype int8",
        ),
        (
            {"permute_input": normal(0, (3, 48)), "up_gate_proj_weight": np.zeros((2, 128, 48), np.int8),
             "down_proj_weight": np.zeros((2, 48, 64), np.int8), "down_proj_scale": np.ones((2, 48), "f4")},
            ValueError,
            "want K a multiple of 64",
        ),
    ],
)  # fmt: skip
def test_refused_by_kernels(change: dict[str, Any], error: type[Exception], why: str) -> None:
    assert_refused("fd-cpu", "moe_expert_ffn", error, why, **{**BASE, **change})
