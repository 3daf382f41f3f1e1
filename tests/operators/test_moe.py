"""Mixture of experts: routing, dispatch, feed-forward and reduction, alone and together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from agreement import TYPES, assert_agrees, assert_refused, assert_rows_alone
from hypothesis import given, settings
from hypothesis import strategies as st
from providers import PROVIDERS, run, same, target

from fd_core.api.tensor import from_numpy

everywhere = pytest.mark.parametrize("provider", PROVIDERS)
every_type = pytest.mark.parametrize("dtype", TYPES, ids=str)
bounded = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31)


def uniform(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).random(shape, np.float32)


def normal(seed: int, shape: tuple[int, ...], dtype: Any) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(dtype)


# -- moe_topk_select ---------------------------------------------------------------------------------


def select(
    provider: str, logits: Any, k: int, bias: Any = None, norm: bool = False, fused: bool = False
) -> Any:
    flags = {"apply_norm_weight": norm, "enable_softmax_top_k_fused": fused}
    got = run(provider, "moe_topk_select", gating_logits=logits, bias=bias, moe_topk=k, **flags)
    return got["topk_ids"], got["topk_weights"]


@everywhere
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_select_equals_torch(provider: str, norm: bool, fused: bool, biased: bool) -> None:
    """The public fixture: 1500 tokens, 128 experts, 8 chosen."""
    torch = pytest.importorskip("torch")
    logits, bias = uniform(0, 1500, 128), uniform(1, 1, 128) / 10 if biased else None
    ids, weights = select(provider, logits, 8, bias, norm, fused)
    p = torch.softmax(torch.from_numpy(logits), -1)
    want_ids = torch.topk(p if bias is None else p + torch.from_numpy(bias), 8).indices
    want = p.gather(-1, want_ids)
    if norm:
        want = want / want.sum(-1, keepdim=True)
    assert (ids == want_ids.numpy()).all()
    np.testing.assert_allclose(weights, want.numpy(), rtol=1e-5, atol=1e-5)


@everywhere
def test_select_ties_nan_and_strong_bias(provider: str) -> None:
    logits = np.array([[1, 2, 2, 1, 2]], np.float32)
    assert select(provider, logits, 4)[0].tolist() == [[1, 2, 4, 0]]
    pushed = np.array([-5, -9, -7, -6, -8], np.float32)  # every key is below -1
    assert select(provider, np.zeros((1, 5), np.float32), 3, pushed)[0].tolist() == [[0, 3, 2]]
    ids, weights = select(provider, np.array([[np.nan, 1, 0]], np.float32), 3)
    assert ids.tolist() == [[1, 2, 0]]
    assert np.isnan(weights).all()


@everywhere
def test_select_many_experts_and_batches(provider: str) -> None:
    logits = np.zeros((2, 3, 1000), np.float32)
    logits[..., 999], logits[..., 257] = 9, 5
    ids, _ = select(provider, logits, 2)
    assert ids.tolist() == [[999, 257]] * 6


@everywhere
def test_select_rows_alone(provider: str) -> None:
    flags = {"bias": uniform(3, 37), "apply_norm_weight": True, "enable_softmax_top_k_fused": False}
    assert_rows_alone(provider, "moe_topk_select", gating_logits=uniform(2, 11, 37), moe_topk=5, **flags)


# -- tritonmoe_preprocess ----------------------------------------------------------------------------


def preprocess(provider: str, ids: Any, experts: int, block: int) -> tuple[Any, Any, int]:
    sizes = {"num_experts": experts, "GEMM_BLOCK_SIZE_M": block}
    got = run(provider, "tritonmoe_preprocess", topk_ids=np.asarray(ids), **sizes)
    return got["sorted_ids"], got["experts_ids"], int(got["num_tokens_post_pad"][0])


@everywhere
@pytest.mark.parametrize("kind", [np.int64, np.int32])
def test_preprocess_fixed_example(provider: str, kind: Any) -> None:
    ids = np.array([[7, 6, 5, 4], [1, 2, 3, 4], [0, 1, 2, 3], [0, 3, 2, 1]], kind)
    order, experts, total = preprocess(provider, ids, 8, 4)
    want = "8 12 16 16 4 9 15 16 5 10 14 16 6 11 13 16 3 7 16 16 2 16 16 16 1 16 16 16 0 16 16 16"
    assert order[:32].tolist() == [int(word) for word in want.split()]
    assert (order[32:] == 16).all()
    assert experts[:8].tolist() == list(range(8))
    assert (experts[8:] == -1).all()
    assert total == 32


@everywhere
def test_preprocess_counts_slots_that_are_elsewhere(provider: str) -> None:
    order, experts, total = preprocess(provider, [-1, 1, -1, 0, -1], 2, 2)
    assert order.tolist() == [0, 2, 4, 5, 3, 5, 1, 5]
    assert experts.tolist() == [-1, -1, 0, 1]
    assert total == 8


@everywhere
@pytest.mark.parametrize(("experts", "block"), [(0, 4), (2, 0), (2, -1)])
def test_preprocess_refuses_no_experts_and_no_block(provider: str, experts: int, block: int) -> None:
    ids, out = from_numpy(np.array([0, 1])), np.zeros(8, np.int32)
    views = from_numpy(out), from_numpy(out[:2]), from_numpy(out[:1])
    with pytest.raises(ValueError, match=r"tritonmoe_preprocess.*want .*have"):
        target(provider, "tritonmoe_preprocess")(ids, experts, block, *views)
    assert not out.any()


@bounded
@given(st.integers(0, 200), st.integers(1, 40), st.integers(1, 20), seeds)
def test_preprocess_agrees(n: int, experts: int, block: int, seed: int) -> None:
    ids = np.random.default_rng(seed).integers(-1, experts, n)
    got = assert_agrees("tritonmoe_preprocess", topk_ids=ids, num_experts=experts, GEMM_BLOCK_SIZE_M=block)
    kept = got["sorted_ids"][got["sorted_ids"] < n]
    assert sorted(kept.tolist()) == list(range(n))


# -- the whole layer -----------------------------------------------------------------------------------

DISPATCH = {"gating_correction_bias": None, "w4a8_in_scale": None, "group_moe": False, "moe_quant_type": ""}
SCALES = {"up_gate_proj_scale": None, "down_proj_scale": None, "down_proj_in_scale": None}
FFN = {**SCALES, "expert_idx_per_token": None, "quant_method": "none", "used_in_ep_low_latency": False}


def layer(
    provider: str, x: Any, scores: Any, k: int, up: Any, down: Any, bias: Any = None, **how: Any
) -> Any:
    """dispatch, feed-forward, reduce; `how`: flags of dispatch and of reduce."""
    flags = {**DISPATCH, "topk_only_mode": True} | {
        n: v for n, v in how.items() if n in (*DISPATCH, "topk_only_mode")
    }
    routed = run(provider, "moe_expert_dispatch", input=x, gating_output=scores, moe_topk=k, **flags)
    sums = {"tokens_expert_prefix_sum": routed["tokens_expert_prefix_sum"]}
    weights = {"up_gate_proj_weight": up, "down_proj_weight": down, "up_gate_proj_bias": bias}
    rows = run(provider, "moe_expert_ffn", permute_input=routed["permute_input"], **sums, **weights, **FFN)[
        "out"
    ]
    return run(
        provider,
        "moe_expert_reduce",
        ffn_out=rows,
        top_k_weight=routed["topk_weight"],
        permute_indices_per_token=routed["permute_indices_per_token"],
        top_k_indices=routed["topk_idx"],
        down_proj_bias=how.get("down_proj_bias"),
        norm_topk_prob=how.get("norm_topk_prob", False),
        routed_scaling_factor=how.get("routed_scaling_factor", 1.0),
    )["out"]


def dense_reference(x: Any, scores: Any, k: int, up: Any, down: Any) -> Any:
    """Every expert on every token, in float64, then the best k weighted by their scores."""
    wide = [a.astype(np.float64) for a in (x, up, down)]
    h = np.einsum("th,ehi->tei", wide[0], wide[1])
    gate, value = np.split(h, 2, -1)
    y = np.einsum("tei,eih->teh", gate / (1 + np.exp(-gate)) * value, wide[2])
    cut = np.sort(scores, -1)[:, -k][:, None]
    return np.einsum("te,teh->th", np.where(scores >= cut, scores, 0), y)


def model(dtype: Any, tokens: int, hidden: int, inner: int, experts: int) -> tuple[Any, Any, Any, Any]:
    x = normal(4, (tokens, hidden), dtype)
    scores = np.exp(uniform(5, tokens, experts))
    up = (normal(6, (experts, hidden, 2 * inner), np.float32) / np.float32(hidden**0.5)).astype(dtype)
    down = (normal(7, (experts, inner, hidden), np.float32) / np.float32(inner**0.5)).astype(dtype)
    return x, (scores / scores.sum(-1, keepdims=True)).astype(np.float32), up, down


@everywhere
@every_type
def test_layer_equals_a_dense_mixture(provider: str, dtype: Any) -> None:
    """The public fixture's chain, smaller: topk_only_mode with scores already softmaxed."""
    x, scores, up, down = model(dtype, 24, 96, 40, 16)
    got = layer(provider, x, scores, 4, up, down).astype(np.float64)
    tolerance = 1e-2 if dtype != np.float32 else 1e-5
    np.testing.assert_allclose(got, dense_reference(x, scores, 4, up, down), rtol=tolerance, atol=tolerance)


@everywhere
def test_layer_rows_do_not_depend_on_the_batch(provider: str) -> None:
    x, scores, up, down = model(TYPES[2], 19, 64, 48, 6)
    whole = layer(provider, x, scores, 2, up, down)
    for at in (0, 7, 18):
        assert same(layer(provider, x[at : at + 1], scores[at : at + 1], 2, up, down)[0], whole[at])


@everywhere
def test_no_tokens_give_empty_rows_and_a_zero_prefix_sum(provider: str) -> None:
    x, scores, up, down = model(TYPES[0], 0, 16, 8, 4)
    flags = {**DISPATCH, "topk_only_mode": False, "moe_topk": 2}
    routed = run(provider, "moe_expert_dispatch", input=x, gating_output=scores, **flags)
    assert routed["tokens_expert_prefix_sum"].tolist() == [0] * 4
    assert layer(provider, x, scores, 2, up, down).shape == (0, 16)


@everywhere
def test_dispatch_orders_rows_by_expert_then_token(provider: str) -> None:
    scores = np.array([[0.1, 0.9, 0.2], [0.8, 0.7, 0.1], [0.3, 0.2, 0.6]], np.float32)
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    flags = {**DISPATCH, "topk_only_mode": True, "moe_topk": 2}
    got = run(provider, "moe_expert_dispatch", input=x, gating_output=scores, **flags)
    assert got["topk_idx"].tolist() == [[1, 2], [0, 1], [2, 0]]
    assert got["expert_idx_per_token"].tolist() == [0, 0, 1, 1, 2, 2]
    assert got["tokens_expert_prefix_sum"].tolist() == [2, 4, 6]
    assert got["permute_indices_per_token"].tolist() == [[2, 0, 5], [4, 3, 1]]
    assert got["permute_input"].tolist() == x[[1, 2, 0, 1, 0, 2]].tolist()


@everywhere
def test_dispatch_by_groups_takes_one_expert_of_each(provider: str) -> None:
    logits = np.array([[3, 1, 0, 0, 5, 5]], np.float32)
    flags = {**DISPATCH, "group_moe": True, "topk_only_mode": False, "moe_topk": 3}
    got = run(
        provider, "moe_expert_dispatch", input=np.ones((1, 4), np.float32), gating_output=logits, **flags
    )
    assert got["topk_idx"].tolist() == [[0, 2, 4]]
    np.testing.assert_allclose(got["topk_weight"], [[1 / (1 + np.exp(-2)), 0.5, 0.5]], rtol=1e-6)


@everywhere
def test_reduce_scales_normalises_and_skips(provider: str) -> None:
    common = {"top_k_indices": np.zeros((2, 2), np.int32), "down_proj_bias": None, "norm_topk_prob": True}
    got = run(
        provider,
        "moe_expert_reduce",
        ffn_out=np.array([[1.0], [2], [np.nan], [8]], np.float32),
        top_k_weight=np.array([[1, 3], [0, 0]], np.float32),
        permute_indices_per_token=np.array([[0, 2], [3, -1]], np.int32),
        routed_scaling_factor=2.0,
        **common,
    )["out"]
    assert got.tolist() == [[12.5], [0.0]]


@bounded
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=5),
    st.integers(1, 70),
    st.integers(1, 40),
    st.booleans(),
    seeds,
)
def test_ffn_agrees(counts: list[int], hidden: int, inner: int, low: bool, seed: int) -> None:
    experts, kind = len(counts), TYPES[seed % 3]
    shape = (experts, max(counts) + 1, hidden) if low else (sum(counts) + 2, hidden)
    up = normal(seed, (experts, hidden, 2 * inner), np.float32) / np.float32(hidden**0.5)
    down = normal(seed + 1, (experts, inner, hidden), np.float32) / np.float32(inner**0.5)
    got = assert_agrees(
        "moe_expert_ffn",
        permute_input=normal(seed + 2, shape, kind),
        tokens_expert_prefix_sum=np.array(counts if low else np.cumsum(counts), np.int64),
        up_gate_proj_weight=up.astype(TYPES[seed % 2]),
        down_proj_weight=down.astype(TYPES[seed % 2]),
        up_gate_proj_bias=None,
        **(FFN | {"used_in_ep_low_latency": low}),
    )["out"]
    assert (got[:, -1:] == 0).all() if low else (got[sum(counts) :] == 0).all()


# -- refusals ------------------------------------------------------------------------------------------

F, I32 = np.float32, np.int32
SELECT = {"gating_logits": np.ones((2, 4), F), "bias": None, "moe_topk": 2}
SELECT |= {"apply_norm_weight": False, "enable_softmax_top_k_fused": False}
GROUPS = {"topk_ids": np.array([0, 1]), "num_experts": 2, "GEMM_BLOCK_SIZE_M": 4}
ROUTE = {
    "input": np.ones((2, 8), F),
    "gating_output": np.ones((2, 6), F),
    "moe_topk": 2,
    "topk_only_mode": False,
}
ROUTE |= DISPATCH
EXPERTS = {"permute_input": np.ones((3, 8), F), "tokens_expert_prefix_sum": np.array([1, 3])}
EXPERTS |= {"up_gate_proj_weight": np.ones((2, 8, 4), F), "down_proj_weight": np.ones((2, 2, 8), F)}
EXPERTS |= {"up_gate_proj_bias": None, **FFN}
SUM = {"ffn_out": np.ones((2, 8), F), "top_k_weight": np.ones((1, 2), F)}
SUM |= {"permute_indices_per_token": np.array([[0], [1]], I32), "top_k_indices": np.zeros((1, 2), I32)}
SUM |= {"down_proj_bias": None, "norm_topk_prob": False, "routed_scaling_factor": 1.0}
OPS = {
    "moe_topk_select": SELECT,
    "tritonmoe_preprocess": GROUPS,
    "moe_expert_dispatch": ROUTE,
    "moe_expert_ffn": EXPERTS,
    "moe_expert_reduce": SUM,
}
BOTH = [
    ("moe_topk_select", r"moe_topk: want 1 \.\. 4, have 5", {"moe_topk": 5}),
    ("moe_topk_select", r"bias", {"bias": np.ones(3, F)}),
    ("tritonmoe_preprocess", r"topk_ids: want -1 \.\. 1", {"topk_ids": np.array([0, 2])}),
    ("tritonmoe_preprocess", r"topk_ids: want -1 \.\. 1", {"topk_ids": np.array([-2, 0])}),
    ("moe_expert_dispatch", r"moe_topk: want a divisor of 6", {"moe_topk": 4, "group_moe": True}),
    ("moe_expert_dispatch", r"have \"?'?w4a8", {"moe_quant_type": "w4a8"}),
    ("moe_expert_dispatch", r"scale", {"w4a8_in_scale": np.ones(6, F)}),
    ("moe_expert_ffn", r"quant_method: want .*\"?none.*have [\"']w4a8", {"quant_method": "w4a8"}),
    ("moe_expert_ffn", r"want no scales", {"down_proj_scale": np.ones((2, 8), F)}),
    (
        "moe_expert_reduce",
        r"permute_indices_per_token: want -1 \.\. 1",
        {"permute_indices_per_token": np.array([[0], [2]], I32)},
    ),
]
KERNEL = [
    (
        "moe_topk_select",
        TypeError,
        r"gating_logits: want dtype float32",
        {"gating_logits": np.ones((2, 4), np.float16)},
    ),
    (
        "tritonmoe_preprocess",
        TypeError,
        r"topk_ids: want dtype int64 or int32",
        {"topk_ids": np.ones(2, np.uint8)},
    ),
    (
        "moe_expert_dispatch",
        TypeError,
        r"gating_output: want dtype float32",
        {"gating_output": np.ones((2, 6), np.float16)},
    ),
    (
        "moe_expert_ffn",
        ValueError,
        r"tokens_expert_prefix_sum: want rising",
        {"tokens_expert_prefix_sum": np.array([2, 1])},
    ),
    (
        "moe_expert_ffn",
        ValueError,
        r"tokens_expert_prefix_sum: want rising",
        {"tokens_expert_prefix_sum": np.array([1, 4])},
    ),
    (
        "moe_expert_ffn",
        ValueError,
        r"tokens_expert_prefix_sum: want rising",
        {"tokens_expert_prefix_sum": np.array([-1, 3])},
    ),
    (
        "moe_expert_ffn",
        ValueError,
        r"down_proj_weight: want size 2",
        {"down_proj_weight": np.ones((2, 3, 8), F)},
    ),
    (
        "moe_expert_reduce",
        ValueError,
        r"top_k_indices: want -1 \.\. 0",
        {"down_proj_bias": np.ones((1, 8), F), "top_k_indices": np.ones((1, 2), I32)},
    ),
]


@everywhere
@pytest.mark.parametrize(("name", "match", "change"), BOTH)
def test_refused_everywhere(provider: str, name: str, match: str, change: dict[str, Any]) -> None:
    assert_refused(provider, name, ValueError, match, **{**OPS[name], **change})


@pytest.mark.parametrize(("name", "error", "match", "change"), KERNEL)
def test_refused_by_kernels(name: str, error: type[Exception], match: str, change: dict[str, Any]) -> None:
    assert_refused("fd-cpu", name, error, rf"{name}\.{match}", **{**OPS[name], **change})
