"""Penalties, bad words, grammar masks, logit bias and allowed tokens, on the oracle and on the kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from providers import PROVIDERS, run, same, target

from fd_core.api.tensor import from_numpy

Array = np.ndarray[Any, Any]
INF = float("inf")
everywhere = pytest.mark.parametrize("provider", PROVIDERS)
bounded = settings(max_examples=25, deadline=None)
NAME = "get_token_penalty_multi_scores"


def penalty_inputs(slots: int = 1, vocab: int = 6, **given_: Any) -> dict[str, Any]:
    """Neutral arguments for `slots` rows, with some replaced."""
    column = lambda value, kind: np.full((slots, 1), value, kind)  # noqa: E731
    neutral = {
        "pre_ids": np.full((slots, 1), -1),
        "prompt_ids": np.zeros((slots, 1), np.int64),
        "prompt_len": column(0, np.int64),
        "logits": np.tile(np.arange(vocab, dtype=np.float32) - 2, (slots, 1)),
        "penalty_scores": column(1, np.float32),
        "frequency_scores": column(0, np.float32),
        "presence_scores": column(0, np.float32),
        "temperatures": column(1, np.float32),
        "bad_tokens": np.full((slots, 1), -1),
        "bad_tokens_len": column(0, np.int64),
        "cur_len": column(0, np.int64),
        "min_len": column(0, np.int64),
        "eos_token_id": np.array([[2]]),
    }
    return {**neutral, **given_}


def penalise(provider: str, **given_: Any) -> Array:
    return run(provider, NAME, **penalty_inputs(**given_))["logits"]


def ids(*values: int) -> Array:
    return np.array([values], np.int64)


def score(value: float) -> Array:
    return np.full((1, 1), value, np.float32)


@everywhere
def test_neutral_values_change_nothing(provider: str) -> None:
    got = penalise(provider, pre_ids=ids(1, 2), prompt_ids=ids(3), prompt_len=ids(1))
    assert same(got, penalty_inputs()["logits"])


@everywhere
def test_minimum_length_masks_the_end_ids(provider: str) -> None:
    ends = np.array([[2], [4], [99], [-1]])
    for current, masked in ((0, True), (4, True), (5, False), (-1, False)):
        got = penalise(provider, cur_len=ids(current), min_len=ids(5), eos_token_id=ends)
        assert (got[0, 2] == got[0, 4] == np.float32(-1e10)) == masked
        assert got[0, [0, 1, 3, 5]].tolist() == [-2, -1, 1, 3]


@everywhere
def test_repetition_counts_prompt_and_generated(provider: str) -> None:
    got = penalise(
        provider, pre_ids=ids(0, 5, -1), prompt_ids=ids(1, 4, 3), prompt_len=ids(2), penalty_scores=score(2)
    )
    assert got.tolist() == [[-4, -2, 0, 1, 1, 1.5]]


@everywhere
def test_frequency_and_presence_count_generated_tokens_only(provider: str) -> None:
    got = penalise(
        provider,
        pre_ids=ids(5, 5, 0, -1),
        prompt_ids=ids(4),
        prompt_len=ids(1),
        frequency_scores=score(0.5),
        presence_scores=score(0.25),
    )
    assert got.tolist() == [[-2.75, -1, 0, 1, 2, 1.75]]


@everywhere
def test_temperature_comes_after_penalties_and_bad_tokens_last(provider: str) -> None:
    got = penalise(
        provider,
        pre_ids=ids(5),
        presence_scores=score(1),
        temperatures=score(0.5),
        bad_tokens=ids(3, 0, -1),
        bad_tokens_len=ids(1),
    )
    assert got.tolist() == [[-4, -2, 0, np.float32(-1e10), 4, 4]]


@everywhere
def test_float16_masks(provider: str) -> None:
    half = {
        k: np.ones((1, 1), np.float16) for k in ("penalty_scores", "frequency_scores", "presence_scores")
    }
    logits = np.zeros((1, 6), np.float16)
    got = penalise(
        provider, logits=logits, min_len=ids(1), bad_tokens=ids(0), bad_tokens_len=ids(1), **half
    )
    assert got.tolist() == [[-INF, 0, -1e4, 0, 0, 0]]


@everywhere
def test_rows_use_their_own_history(provider: str) -> None:
    """Slot 1's prompt must not reach slot 0, nor the other way round."""
    got = penalise(
        provider,
        slots=2,
        prompt_ids=np.array([[5], [4]]),
        prompt_len=np.ones((2, 1), np.int64),
        penalty_scores=np.full((2, 1), 2, np.float32),
        pre_ids=np.array([[-1], [0]]),
    )
    assert got.tolist() == [[-2, -1, 0, 1, 2, 1.5], [-4, -1, 0, 1, 1, 3]]


@everywhere
def test_public_size(provider: str) -> None:
    """The shapes of the public test with a loop in place of tables."""
    rng = np.random.default_rng(0)
    slots, vocab, width = 4, 103424, 32768
    lengths = rng.integers(1, 100, (slots, 2))
    pre, prompt = np.full((slots, width), -1), np.zeros((slots, width), np.int64)
    for b, (generated, prompted) in enumerate(lengths):
        pre[b, :generated] = rng.integers(0, 50, generated)
        prompt[b, :prompted] = rng.integers(0, vocab, prompted)
    logits = rng.standard_normal((slots, vocab)).astype(np.float32)
    column = lambda value: np.full((slots, 1), value, np.float32)  # noqa: E731
    got = penalise(
        provider,
        slots=slots,
        pre_ids=pre,
        prompt_ids=prompt,
        prompt_len=lengths[:, 1:],
        logits=logits,
        penalty_scores=column(1.05),
        frequency_scores=column(0.5),
        presence_scores=column(0.3),
        temperatures=column(0.8),
        cur_len=lengths[:, :1],
        min_len=np.ones((slots, 1), np.int64),
        bad_tokens=np.zeros((slots, 10), np.int64),
    )
    want = logits.astype(np.float64)
    for b in range(slots):
        generated = pre[b, : lengths[b, 0]].tolist()
        for v in {*generated, *prompt[b, : lengths[b, 1]].tolist()}:
            want[b, v] = want[b, v] * 1.05 if want[b, v] < 0 else want[b, v] / 1.05
            want[b, v] -= generated.count(v) * 0.5 + 0.3 * (v in generated)
    np.testing.assert_allclose(got, want / 0.8, rtol=1e-4, atol=1e-4)


@bounded
@given(seed=st.integers(0, 10**6), vocab=st.sampled_from([1, 15, 16, 17, 300]), history=st.integers(0, 40))
def test_rows_are_independent(seed: int, vocab: int, history: int) -> None:
    rng = np.random.default_rng(seed)
    inputs = penalty_inputs(
        slots=5,
        pre_ids=rng.integers(-1, vocab + 1, (5, history)),
        prompt_ids=rng.integers(0, vocab, (5, 4)),
        prompt_len=rng.integers(0, 6, (5, 1)),
        logits=rng.standard_normal((5, vocab)).astype(np.float32),
        penalty_scores=rng.uniform(0.5, 2, (5, 1)).astype(np.float32),
        temperatures=rng.uniform(0.5, 2, (5, 1)).astype(np.float32),
        frequency_scores=rng.uniform(-1, 1, (5, 1)).astype(np.float32),
    )
    batch = run("fd-cpu", NAME, **inputs)["logits"]
    for b in range(5):
        alone = {k: v if k == "eos_token_id" else v[b : b + 1] for k, v in inputs.items()}
        assert same(run("fd-cpu", NAME, **alone)["logits"][0], batch[b])


# -- bad words -----------------------------------------------------------------------------------------


def ban(
    provider: str, history: list[int], words: list[list[int]], logits: Any = None, eos: int = 5
) -> Array:
    longest = max(map(len, words))
    padded = np.array([[w + [-1] * (longest - len(w)) for w in words]], np.int64)
    values = np.zeros((1, 6), np.float32) if logits is None else np.array([logits], np.float32)
    return run(
        provider,
        "apply_bad_words",
        logits=values,
        history=np.array([history], np.int64).reshape(1, -1),
        bad_words=padded,
        bad_words_len=np.array([[len(w) for w in words]], np.int32),
        eos_token_id=ids(eos),
    )["logits"][0]


def banned(row: Array) -> list[int]:
    return np.flatnonzero(row == np.float32(-1e10)).tolist()


@everywhere
def test_bad_words(provider: str) -> None:
    assert banned(ban(provider, [], [[2], [0]])) == [0, 2]
    assert banned(ban(provider, [1, 2], [[1, 2, 3], [2, 4], [1, 0]])) == [3, 4]
    assert banned(ban(provider, [1, 2, -1, -1], [[1, 2, 3]])) == [3]
    assert banned(ban(provider, [2], [[1, 2, 3]])) == []
    assert banned(ban(provider, [1, 2, 0], [[1, 2, 3]])) == []
    assert banned(ban(provider, [], [[7], [-1]])) == []


@everywhere
def test_bad_words_never_leave_an_empty_choice(provider: str) -> None:
    """All but tokens 1 and 5 (end) are excluded and both are banned: the end stays."""
    logits = [-INF, 2, -INF, -INF, -INF, 3]
    assert ban(provider, [], [[1], [5]], logits).tolist() == [-INF, np.float32(-1e10), -INF, -INF, -INF, 3]
    assert banned(ban(provider, [], [[1]], logits)) == [1]


# -- grammar masks, bias, allowed tokens ----------------------------------------------------------------


@everywhere
def test_bitmask(provider: str) -> None:
    logits = np.ones((3, 70), np.float32)
    mask = np.zeros((3, 3), np.int32)
    mask[0, 0], mask[0, 2] = 1, 0b100000  # tokens 0 and 69
    mask[2, 1] = -(2**31)  # token 63
    inputs = {"logits": logits, "bitmask": mask, "vocab_size": 70}
    got = run(provider, "apply_token_bitmask", indices=None, **inputs)["logits"]
    assert [np.flatnonzero(row == 1).tolist() for row in got] == [[0, 69], list(range(70)), [63]]
    some = run(provider, "apply_token_bitmask", indices=np.array([2]), **{**inputs, "vocab_size": 64})[
        "logits"
    ]
    assert np.flatnonzero(some[2] == 1).tolist() == [63, *range(64, 70)]
    assert np.all(some[:2] == 1)


@everywhere
def test_logit_bias_and_allowed_tokens(provider: str) -> None:
    logits = np.zeros((3, 4), np.float32)
    offsets = np.array([0, 3, 3, 4], np.int32)
    lists = {"logits": logits, "offsets": offsets, "ids": np.array([1, 1, 9, 0])}
    values = np.array([1, 2, 5, -INF], np.float32)
    assert run(provider, "apply_logit_bias", values=values, **lists)["logits"].tolist() == [
        [0, 3, 0, 0],
        [0, 0, 0, 0],
        [-INF, 0, 0, 0],
    ]
    assert run(provider, "apply_allowed_tokens", **lists)["logits"].tolist() == [
        [-INF, 0, -INF, -INF],
        [0, 0, 0, 0],
        [0, -INF, -INF, -INF],
    ]
    outside = {**lists, "ids": np.array([9, -1, 9, 4])}
    assert same(run(provider, "apply_allowed_tokens", **outside)["logits"], logits)


# -- refusals ------------------------------------------------------------------------------------------


def arguments(name: str) -> dict[str, Any]:
    logits = np.ones((2, 40), np.float32)
    lists = {"logits": logits, "offsets": np.array([0, 1, 2], np.int32), "ids": np.array([1, 2])}
    return {
        NAME: penalty_inputs(slots=2),
        "apply_bad_words": {
            "logits": logits,
            "history": np.zeros((2, 1), np.int64),
            "bad_words": np.ones((2, 1, 1), np.int64),
            "bad_words_len": np.ones((2, 1), np.int32),
            "eos_token_id": ids(2),
        },
        "apply_token_bitmask": {
            "logits": logits,
            "bitmask": np.ones((2, 2), np.int32),
            "vocab_size": 40,
            "indices": None,
        },
        "apply_logit_bias": {**lists, "values": np.ones(2, np.float32)},
        "apply_allowed_tokens": lists,
    }[name]


BAD = [
    (NAME, "temperatures", np.array([[1], [0]], np.float32), ValueError, "want > 0, have 0 in row 1"),
    (NAME, "penalty_scores", np.array([[0], [1]], np.float32), ValueError, "want > 0, have 0 in row 0"),
    (NAME, "penalty_scores", np.ones((2, 1), np.float16), TypeError, "want dtype float32, have float16"),
    (NAME, "logits", np.ones((3, 6), np.float32), ValueError, r"want at most 2 rows \(slots\)"),
    (NAME, "logits", np.ones((2, 6), np.int32), TypeError, "have int32"),
    (NAME, "pre_ids", np.ones((2, 3), np.int32), TypeError, "want dtype int64"),
    (NAME, "prompt_ids", np.ones((3, 3), np.int64), ValueError, "want size 2"),
    ("apply_bad_words", "bad_words", np.ones((2, 1), np.int64), ValueError, "want rank 3"),
    ("apply_bad_words", "bad_words_len", np.ones((2, 1), np.int64), TypeError, "want dtype int32"),
    ("apply_token_bitmask", "vocab_size", 41, ValueError, "want 0..40, have 41"),
    ("apply_token_bitmask", "indices", np.array([0, 2]), ValueError, r"want rows in \[0, 2\), have 2"),
    ("apply_token_bitmask", "bitmask", np.ones((2, 2), np.int64), TypeError, "want dtype int32"),
    ("apply_token_bitmask", "bitmask", np.ones((1, 2), np.int32), ValueError, "want at least 2 rows"),
    ("apply_logit_bias", "offsets", np.array([0, 2, 1], np.int32), ValueError, "ascending"),
    ("apply_logit_bias", "offsets", np.array([0, 1, 3], np.int32), ValueError, "have 3 at 2"),
    ("apply_logit_bias", "values", np.ones(3, np.float32), ValueError, "want size 2"),
    ("apply_allowed_tokens", "ids", np.array([1, 2], np.int32), TypeError, "want dtype int64"),
]


@pytest.mark.parametrize(("name", "arg", "value", "kind", "message"), BAD)
def test_bad_input_is_refused_before_anything_is_written(
    name: str, arg: str, value: Any, kind: type[Exception], message: str
) -> None:
    values = {**arguments(name), arg: value}
    before = {k: v.copy() for k, v in values.items() if isinstance(v, np.ndarray)}
    with pytest.raises(kind, match=rf"{name}\.{arg}: .*{message}"):
        target("fd-cpu", name)(
            *(from_numpy(v) if isinstance(v, np.ndarray) else v for v in values.values())
        )
    assert all(same(values[k], v) for k, v in before.items())
