"""Random numbers, truncation and draws; refusals of the family, on the oracle and on the kernels."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from providers import PROVIDERS, run, same, target

from fd_core.api.tensor import from_numpy
from fd_core.ops.sampling._philox import philox4x32_10, philox_bits

Array = np.ndarray[Any, Any]
everywhere = pytest.mark.parametrize("provider", PROVIDERS)
bounded = settings(max_examples=25, deadline=None)

# Random123's published known answers for philox4x32 with 10 rounds: counter, key, result.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def sample(provider: str, probs: Array, **given_: Any) -> Array:
    """Defaults switch every filter off; row r has seed 7 and position r."""
    n = len(probs)
    kinds = {
        "top_k": np.int64,
        "top_p": np.float32,
        "min_p": np.float32,
        "seed": np.int64,
        "position": np.int64,
    }
    values = {"top_k": 0, "top_p": 1, "min_p": 0, "seed": 7, "position": np.arange(n), **given_}
    rows = {k: np.broadcast_to(np.asarray(values[k], t), (n,)).copy() for k, t in kinds.items()}
    return run(provider, "sample_top_k_top_p", probs=probs.astype(np.float32), **rows)["out"]


def random_probs(seed: int, rows: int, vocab: int, scale: float = 2.0) -> Array:
    x = np.random.default_rng(seed).standard_normal((rows, vocab)) * scale
    e = np.exp(x)
    return (e / e.sum(axis=-1, keepdims=True)).astype(np.float32)


# -- random numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_philox_known_answers(counter: str, key: str, result: str) -> None:
    assert philox4x32_10(words(counter), words(key)).tolist() == words(result)


@everywhere
def test_draw_uses_the_first_two_philox_words(provider: str) -> None:
    """A uniform row of 4096 shows the 12 leading bits: KNOWN[0] is seed 0, position 0."""
    uniform = np.full((1, 4096), 1 / 4096, np.float32)
    assert sample(provider, uniform, seed=0, position=0).tolist() == [0xE16]
    assert sample(provider, uniform, seed=-1, position=5).tolist() == [philox_bits(-1, 5) >> 52]


@everywhere
def test_rejection_uses_a_stream_per_row(provider: str) -> None:
    uniform = np.full((3, 4096), 1 / 4096, np.float32)
    got = rejection(provider, uniform, 1.0, seed=9).ravel().tolist()
    assert got == [philox_bits(9, 0, row) >> 52 for row in range(3)]


# -- filters -------------------------------------------------------------------------------------------


def renorm(provider: str, probs: Any, k: Any) -> Array:
    inputs = {"probs": np.array(probs, np.float32), "top_k": np.array(k, np.int64)}
    return run(provider, "top_k_renorm_probs", **inputs)["renorm_probs"]


@everywhere
def test_top_k_renorm(provider: str) -> None:
    probs = [[0.1, 0.4, 0.2, 0.25, 0.05]]
    np.testing.assert_allclose(
        renorm(provider, probs, [2]), [[0, 0.4 / 0.65, 0, 0.25 / 0.65, 0]], rtol=1e-6
    )
    assert np.count_nonzero(renorm(provider, [[0.1, 0.2, 0.3, 0.4]], [[1]])) == 1
    for off in (0, 5, 6, -3):
        assert same(renorm(provider, probs, [off]), np.array(probs, np.float32))


@everywhere
def test_top_k_renorm_keeps_ties_and_short_rows(provider: str) -> None:
    assert np.count_nonzero(renorm(provider, [[0.3, 0.2, 0.2, 0.2, 0.1]], [2])) == 4
    assert renorm(provider, [[0, 0.5, 0, 0.25, 0]], [3]).tolist() == [[0, 0.5, 0, 0.25, 0]]


@everywhere
def test_min_p_does_not_renormalise(provider: str) -> None:
    probs = np.array([[0.5, 0.25, 0.125, 0.125]] * 3, np.float32)
    got = run(provider, "min_p_sampling", probs=probs, min_p=np.array([0, 0.5, 1], np.float32))[
        "renorm_probs"
    ]
    assert got.tolist() == [[0.5, 0.25, 0.125, 0.125], [0.5, 0.25, 0, 0], [0.5, 0, 0, 0]]


# -- draws ---------------------------------------------------------------------------------------------


def rejection(provider: str, probs: Array, top_p: Any, top_k: Any = None, seed: int = 0) -> Array:
    n = len(probs)
    inputs = {
        "probs": probs,
        "top_p": np.broadcast_to(np.asarray(top_p, np.float32), (n,)).copy(),
        "top_k": None if top_k is None else np.broadcast_to(np.asarray(top_k, np.int64), (n,)).copy(),
        "seed": seed, "row_seeds": None, "positions": None,
    }  # fmt: skip
    return run(provider, "rejection_top_p_sampling", **inputs)["samples"]


def kept_ids(row: Array, top_k: int, top_p: float, min_p: float) -> set[int]:
    """The definition, in exact arithmetic: min_p_sampling, then top_k_renorm_probs, then top-p."""
    exact = [Fraction(float(v)) for v in row]
    floor = np.float32(row.max() * np.float32(min_p))
    alive = {i: v for i, v in enumerate(exact) if v > 0 and row[i] >= floor}
    share = Fraction(1)
    if 0 < top_k < len(exact) and len(alive) >= top_k:
        cut = sorted(alive.values(), reverse=True)[top_k - 1]
        alive = {i: v for i, v in alive.items() if v >= cut}
        share = sum(alive.values(), Fraction(0))
    if top_p >= 1:
        return set(alive)
    bound = Fraction(float(np.float32(top_p))) * share
    return {i for i, v in alive.items() if sum((w for w in alive.values() if w > v), Fraction(0)) < bound}


@everywhere
@bounded
@given(
    seed=st.integers(0, 10**6), vocab=st.integers(2, 12), top_k=st.integers(0, 12),
    top_p=st.sampled_from([0.05, 0.3, 0.5, 0.75, 0.9, 1.0]), min_p=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    grain=st.sampled_from([0, 8, 16]),
)  # fmt: skip
def test_exactly_the_kept_ids_are_drawn(
    provider: str, seed: int, vocab: int, top_k: int, top_p: float, min_p: float, grain: int
) -> None:
    row = random_probs(seed, 1, vocab, 1.0)[0]
    if grain:  # multiples of 1/grain: many ties, exact boundaries, zeros
        row = (
            np.random.default_rng(seed).multinomial(
                grain, row.astype(np.float64) / row.sum(dtype=np.float64)
            )
            / grain
        ).astype(np.float32)
    want = kept_ids(row, top_k, top_p, min_p)
    lightest = min(row[i] for i in want) / sum(row[i] for i in want)
    draws = int(min(3000, 20 / lightest))
    got = set(sample(provider, np.tile(row, (draws, 1)), top_k=top_k, top_p=top_p, min_p=min_p).tolist())
    assert got <= want
    assert lightest < 20 / 3000 or got == want


@everywhere
@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"top_k": 3}, [0, 1, 2]),
        ({"top_p": 0.59}, [0, 1]),
        ({"top_p": 0.61}, [0, 1, 2]),
        ({"min_p": 0.4}, [0, 1]),
        ({"top_k": 4, "top_p": 0.5}, [0, 1]),
    ],
)
def test_drawn_distribution(provider: str, filters: dict[str, float], kept: list[int]) -> None:
    """Pearson's chi-square against the truncated distribution; 32 is beyond 1 in 10^5 at 5 degrees."""
    probs = np.array([0.4, 0.2, 0.15, 0.1, 0.1, 0.05], np.float32)
    draws = 20000 if provider == "fd-cpu" else 4000
    got = np.bincount(sample(provider, np.tile(probs, (draws, 1)), **filters), minlength=6)
    expected = np.zeros(6)
    expected[kept] = probs[kept] / probs[kept].sum() * draws
    assert set(np.flatnonzero(got)) == set(kept)
    assert np.sum((got[kept] - expected[kept]) ** 2 / expected[kept]) < 32


@everywhere
def test_draw_depends_on_its_row_alone(provider: str) -> None:
    probs = random_probs(3, 24, 777)
    given_ = {
        "top_k": np.resize([0, 5, 50], 24), "top_p": np.resize([0.9, 1], 24),
        "min_p": np.resize([0, 0, 0.01], 24),
        "seed": np.arange(24) * 12345, "position": np.resize([0, 9], 24),
    }  # fmt: skip
    batch = sample(provider, probs, **given_)
    alone = [
        sample(provider, probs[r : r + 1], **{k: v[r : r + 1] for k, v in given_.items()})[0]
        for r in range(24)
    ]
    assert batch.tolist() == alone
    order = np.random.default_rng(0).permutation(24)
    assert (
        sample(provider, probs[order], **{k: v[order] for k, v in given_.items()}).tolist()
        == batch[order].tolist()
    )


def test_thread_count_changes_nothing() -> None:
    library = pytest.importorskip("fd_cpu.library")
    logits = 3 * np.random.default_rng(5).standard_normal((3, 50000)).astype(np.float32)
    temperature = np.array([0.7, 1, 1.3], np.float32)
    results = []
    try:
        for threads in (1, 2, 3):
            target("fd-cpu", "set_threads")(threads)
            probs = run("fd-cpu", "temperature_softmax", logits=logits, temperature=temperature)["probs"]
            top = run("fd-cpu", "argmax", logits=logits)["out"]
            results.append((probs.tobytes(), top.tobytes(), sample("fd-cpu", probs, top_p=0.9).tobytes()))
    finally:
        library.set_threads(library.thread_count())
    assert results[0] == results[1] == results[2]


@everywhere
def test_seed_and_position_change_the_draw(provider: str) -> None:
    probs = random_probs(4, 1, 5000, 0.1)
    drawn = {int(sample(provider, probs, seed=s, position=p)[0]) for s in (1, 2, 3) for p in (0, 1, 2**33)}
    assert len(drawn) == 9
    assert sample(provider, probs, seed=3, position=1)[0] == sample(provider, probs, seed=3, position=1)[0]


@everywhere
def test_draw_special_rows(provider: str) -> None:
    nan, zero = np.full(4, np.nan), np.zeros(4)
    holes = np.array([np.nan, 0, 1, -1])
    tiny = np.array([0, 1e-30, 1e-30, 0])
    probs = np.stack([nan, zero, holes, tiny]).astype(np.float32)
    assert sample(provider, probs, top_k=2, top_p=0.9).tolist() == [0, 0, 2, 1]
    greedy = random_probs(1, 6, 300)
    assert sample(provider, greedy, top_p=0).tolist() == greedy.argmax(-1).tolist()
    assert sample(provider, greedy, top_k=1).tolist() == greedy.argmax(-1).tolist()
    assert sample(provider, greedy, min_p=1).tolist() == greedy.argmax(-1).tolist()


@pytest.mark.parametrize("top_k", [None, 20])
def test_rejection_at_the_public_size(top_k: int | None) -> None:
    probs = random_probs(0, 10, 103424, 1.0)
    top_p = np.random.default_rng(1).uniform(0.1, 1, 10)
    got = rejection("fd-cpu", probs, top_p, top_k, seed=2033)
    assert got.shape == (10, 1)
    assert got.dtype == np.int64
    assert np.all((got >= 0) & (got < 103424))
    assert len(set(got.ravel().tolist())) > 1
    assert same(got, rejection("fd-cpu", probs, top_p, top_k, seed=2033))
    assert same(got, rejection("oracle", probs, top_p, top_k, seed=2033))


@everywhere
def test_rejection_filters_jointly(provider: str) -> None:
    """Joint: 0.5 + 0.2 reach 0.6 of the whole; after top-k's renormalisation 0.5 would alone."""
    probs = np.tile(np.array([0.5, 0.2, 0.15, 0.15], np.float32), (500, 1))
    assert set(rejection(provider, probs, 0.6, 2).ravel().tolist()) == {0, 1}
    assert set(sample(provider, probs, top_p=0.6, top_k=2).tolist()) == {0}


@bounded
@given(st.data())
def test_kernel_draws_as_the_oracle_does(data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 10**6))
    rng = np.random.default_rng(seed)
    rows, vocab = (
        data.draw(st.integers(1, 5)),
        data.draw(st.sampled_from([1, 2, 255, 256, 257, 1000, 5000])),
    )
    probs = random_probs(seed, rows, vocab, data.draw(st.sampled_from([0.0, 0.5, 4.0])))
    if data.draw(st.booleans()):
        probs = np.round(probs * 50) / np.float32(50)
    filters = {
        "top_k": rng.choice([0, 1, 3, 300, vocab, vocab + 1, -1], rows),
        "top_p": rng.choice([0, 1e-6, 0.4, 0.99999, 1, 2, np.nan], rows),
        "min_p": rng.choice([0, 0.2, 1, 2, np.nan], rows),
        "seed": rng.integers(-(2**63), 2**63 - 1, rows), "position": rng.integers(0, 2**62, rows),
    }  # fmt: skip
    assert same(sample("fd-cpu", probs, **filters), sample("oracle", probs, **filters))


# -- refusals ------------------------------------------------------------------------------------------


def arguments(name: str) -> dict[str, Array]:
    f, i = (lambda *s: np.full(s, 0.5, np.float32)), (lambda *s: np.zeros(s, np.int64))
    return {
        "argmax": {"logits": f(2, 5), "out": i(2)},
        "temperature_softmax": {"logits": f(2, 5), "temperature": f(2), "probs": f(2, 5)},
        "top_k_renorm_probs": {"probs": f(2, 5), "top_k": i(2), "renorm_probs": f(2, 5)},
        "min_p_sampling": {"probs": f(2, 5), "min_p": f(2), "renorm_probs": f(2, 5)},
        "sample_top_k_top_p": {
            "probs": f(2, 5), "top_k": i(2), "top_p": f(2), "min_p": f(2), "seed": i(2),
            "position": i(2), "out": i(2),
        },
        "rejection_top_p_sampling": {
            "probs": f(2, 5), "top_p": f(2), "top_k": i(2), "seed": 0, "row_seeds": None, "positions": None,
            "samples": i(2, 1),
        },
        "top_logprobs": {
            "logits": f(2, 5), "token_ids": i(2), "k": 3, "token_logprob": f(2), "rank": i(2),
            "ids": i(2, 3), "logprobs": f(2, 3),
        },
    }[name]  # fmt: skip


BAD = [
    (
        "argmax",
        "logits",
        np.zeros((2, 5), np.int32),
        TypeError,
        "want float32, bfloat16 or float16, have int32",
    ),
    ("argmax", "logits", np.zeros((2, 0), np.float32), ValueError, "want at least one column"),
    ("argmax", "out", np.zeros(3, np.int64), ValueError, r"want size 2 in dimension 0, have \[3\]"),
    ("argmax", "out", np.zeros(2, np.int32), TypeError, "want dtype int64, have int32"),
    (
        "temperature_softmax",
        "temperature",
        np.array([1, -1], np.float32),
        ValueError,
        ">= 0, have -1 in row 1",
    ),
    (
        "temperature_softmax",
        "temperature",
        np.array([np.nan, 1], np.float32),
        ValueError,
        "have nan in row 0",
    ),
    ("temperature_softmax", "probs", np.zeros((2, 4), np.float32), ValueError, "want size 5"),
    ("temperature_softmax", "logits", np.zeros((5, 2), np.float32).T, ValueError, "want stride 1"),
    ("top_k_renorm_probs", "top_k", np.zeros(3, np.int64), ValueError, "want 2 elements"),
    ("top_k_renorm_probs", "top_k", np.zeros(2, np.int32), TypeError, "want dtype int64"),
    ("min_p_sampling", "min_p", np.array([0, 1.5], np.float32), ValueError, "have 1.5 in row 1"),
    ("sample_top_k_top_p", "probs", np.zeros((2, 5), np.float16), TypeError, "want dtype float32"),
    ("sample_top_k_top_p", "seed", np.zeros(1, np.int64), ValueError, "want size 2"),
    ("rejection_top_p_sampling", "seed", -1, ValueError, "want >= 0"),
    ("rejection_top_p_sampling", "row_seeds", np.zeros(2, np.int64), ValueError, "together"),
    ("top_logprobs", "token_ids", np.array([0, 5]), ValueError, r"want ids in \[0, 5\), have 5 in row 1"),
    ("top_logprobs", "k", 6, ValueError, "want 0..5, have 6"),
]


@pytest.mark.parametrize(("name", "arg", "value", "kind", "message"), BAD)
def test_bad_input_is_refused_before_anything_is_written(
    name: str, arg: str, value: Any, kind: type[Exception], message: str
) -> None:
    values = {**arguments(name), arg: value}
    before = {k: v.copy() for k, v in values.items() if isinstance(v, np.ndarray)}
    call = target("fd-cpu", name)
    named = "positions" if arg == "row_seeds" else arg
    with pytest.raises(kind, match=rf"{name}\.{named}: .*{message}"):
        call(*(from_numpy(v) if isinstance(v, np.ndarray) else v for v in values.values()))
    assert all(same(values[k], v) for k, v in before.items())
