"""The engine's sampler: stages, their order, seeds, batches, log-probabilities."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fd_core.engine.request import SamplingParams, TokenLogprobs
from fd_core.engine.sampler import Sampler, SampleResult
from fd_core.engine.sampling_state import RowState, TokenHistory
from fd_core.engine.staging import Staged
from fd_core.engine.transit import Transit
from fd_core.host.freeze import freeze
from fd_core.host.session import open_session
from fd_core.ops.catalogue import catalogue
from tests.platforms import byte_device

Array = np.ndarray[Any, Any]
VOCAB = 40
EOS = 3


@pytest.fixture(params=["reference", "cpu", "bytes"])
def session(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """NumPy oracles, compiled kernels, and oracles on a device whose memory the host cannot address."""
    if request.param == "cpu":
        library = pytest.importorskip("fd_cpu.library", reason="fd-cpu is not installed")
        if not library.verdict().ok:
            pytest.skip(str(library.verdict()))
    if request.param != "bytes":
        return open_session(request.param)
    monkeypatch.setattr(byte_device, "CAPACITY", 1 << 27)
    platform = byte_device.ByteDevice()
    device = platform.open(0)
    return SimpleNamespace(
        platform=platform, device=device, ops=freeze(catalogue(), [], device, policy="allow")
    )


@pytest.fixture
def sampler(session: Any) -> Sampler:
    return Sampler(session.ops, session.platform, session.device, VOCAB, 64)


def row(
    generated: tuple[int, ...] = (), prompt: tuple[int, ...] = (1,), seed: int = 1, **params: Any
) -> RowState:
    params = {"temperature": 0.0, **params}
    return RowState(SamplingParams(**params), list(prompt), list(generated), seed, (EOS,))


def peaked(*best: int) -> Array:
    """Logits 10, 9, 8, ... at the named ids, 0 elsewhere."""
    logits = np.zeros(VOCAB, np.float32)
    logits[list(best)] = 10 - np.arange(len(best))
    return logits


def run(sampler: Sampler, logits: Any, rows: list[RowState]) -> SampleResult:
    return sampler.sample(sampler.platform.from_host(np.array(logits, np.float32)), rows)


def one(sampler: Sampler, logits: Array, state: RowState) -> int:
    return run(sampler, [logits], [state]).token_ids[0]


def counts(sampler: Sampler) -> dict[str, int]:
    return {name: op.calls for name, op in sampler.ops.table.items() if op.calls}


def called(sampler: Sampler, logits: Any, rows: list[RowState]) -> set[str]:
    """Ops that one step called."""
    before = counts(sampler)
    run(sampler, logits, rows)
    return {name for name, n in counts(sampler).items() if n > before.get(name, 0)}


def random_logits(rows: int, seed: int = 0) -> Array:
    return (2 * np.random.default_rng(seed).standard_normal((rows, VOCAB))).astype(np.float32)


# -- greedy --------------------------------------------------------------------------------------------


def test_greedy_batches_call_argmax_alone(sampler: Sampler) -> None:
    rows = [row(), row(top_p=0.1, min_p=0.9, top_k=7), row(temperature=1.0, top_k=1)]
    assert called(sampler, random_logits(3), rows) == {"argmax"}


def test_temperature_zero_is_argmax_whatever_else_is_set(sampler: Sampler) -> None:
    logits = random_logits(3)
    rows = [row(top_p=0.01), row(top_k=30, min_p=0.5), row()]
    assert run(sampler, logits, rows).token_ids == logits.argmax(-1).tolist()


def test_token_zero_is_ordinary(sampler: Sampler) -> None:
    assert one(sampler, peaked(0), row()) == 0
    assert one(sampler, peaked(0), row(temperature=0.1)) == 0
    assert one(sampler, peaked(0, 1), row(generated=(0,), presence_penalty=2.0)) == 1
    assert one(sampler, peaked(0, 1), row(bad_words=((0,),))) == 1


def test_greedy_rows_stay_greedy_among_sampled_ones(sampler: Sampler) -> None:
    logits = random_logits(9)
    rows = [row(temperature=0.0 if i % 2 else 1.5, seed=i) for i in range(9)]
    assert run(sampler, logits, rows).token_ids[1::2] == logits.argmax(-1)[1::2].tolist()


# -- each stage has its effect ---------------------------------------------------------------------------


def test_grammar_mask(sampler: Sampler) -> None:
    state, free = row(), row()
    state.bitmask = np.array([1 << 5 | 1 << 6, 0], np.int32)
    assert run(sampler, [peaked(7, 6, 5), peaked(7)], [state, free]).token_ids == [6, 7]
    state.bitmask = np.array([1 << 5], np.int32)  # a tokenizer smaller than the model: the rest is masked
    assert one(sampler, peaked(35, 5), state) == 5


def test_logit_bias(sampler: Sampler) -> None:
    assert one(sampler, peaked(4, 5), row(logit_bias={5: 1.5})) == 5
    assert one(sampler, peaked(4, 5), row(logit_bias={4: -100.0})) == 5


def test_allowed_tokens(sampler: Sampler) -> None:
    assert one(sampler, peaked(4, 5, 6), row(allowed_token_ids=(6, 5, 20))) == 5


def test_minimum_length_masks_end_and_stop_tokens(sampler: Sampler) -> None:
    state = row(min_tokens=2, stop_token_ids=(8,))
    logits = peaked(EOS, 8, 9)
    assert one(sampler, logits, state) == 9
    state.generated_ids.append(9)
    assert one(sampler, logits, state) == 9
    state.generated_ids.append(9)
    assert one(sampler, logits, state) == EOS
    assert one(sampler, logits, row(min_tokens=2)) == 8


def test_minimum_length_yields_to_a_finished_grammar(sampler: Sampler) -> None:
    """Only the end is allowed and it must wait: it comes all the same, never token 0."""
    state = row(min_tokens=5)
    state.bitmask = np.array([1 << EOS, 0], np.int32)
    assert one(sampler, peaked(9), state) == EOS
    assert one(sampler, peaked(9), row(min_tokens=5, allowed_token_ids=(EOS,))) == EOS


def test_repetition_penalty_includes_the_prompt(sampler: Sampler) -> None:
    assert one(sampler, peaked(4, 5), row(prompt=(4,), repetition_penalty=2.0)) == 5
    assert one(sampler, peaked(4, 5), row(generated=(4,), repetition_penalty=2.0)) == 5
    assert one(sampler, peaked(4, 5), row(prompt=(9,), repetition_penalty=2.0)) == 4


def test_frequency_and_presence_ignore_the_prompt(sampler: Sampler) -> None:
    for penalty in ({"frequency_penalty": 1.5}, {"presence_penalty": 1.5}):
        assert one(sampler, peaked(4, 5), row(prompt=(4, 4), **penalty)) == 4
        assert one(sampler, peaked(4, 5), row(generated=(4,), **penalty)) == 5
    assert one(sampler, peaked(4, 5), row(generated=(4,), frequency_penalty=0.6)) == 4
    assert one(sampler, peaked(4, 5), row(generated=(4, 4), frequency_penalty=0.6)) == 5


def test_penalties_see_the_rows_own_history(sampler: Sampler) -> None:
    rows = [row(generated=(5,), presence_penalty=2.0), row(generated=(4,), presence_penalty=2.0), row()]
    assert run(sampler, [peaked(4, 5)] * 3, rows).token_ids == [4, 5, 4]


def test_history_follows_the_generated_tokens(sampler: Sampler) -> None:
    """Ten tokens without repeats, across the growth of the history's buffer."""
    state = row(presence_penalty=100.0, generated=(39,) * 60)
    logits = np.arange(VOCAB, dtype=np.float32)
    for want in range(38, 28, -1):
        token = one(sampler, logits, state)
        assert token == want
        state.generated_ids.append(token)


def test_bad_words_follow_penalties(sampler: Sampler) -> None:
    words = ((4,), (1, 5))
    assert one(sampler, peaked(4, 5, 6), row(bad_words=words)) == 5
    assert one(sampler, peaked(4, 5, 6), row(bad_words=words, generated=(1,))) == 6
    assert one(sampler, peaked(4, 5, 6), row(bad_words=words, generated=(1,), presence_penalty=-50.0)) == 1


def test_filters(sampler: Sampler) -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05] + [1e-9] * (VOCAB - 4), np.float32))

    def drawn(**params: Any) -> set[int]:
        rows = [row(temperature=1.0, seed=i, **params) for i in range(64)]
        found = set()
        for _ in range(6):
            found |= set(run(sampler, [logits] * 64, rows).token_ids)
            for state in rows:
                state.generated_ids.append(0)
        return found

    assert drawn() == {0, 1, 2, 3}
    assert drawn(top_k=2) == {0, 1}
    assert drawn(top_p=0.81) == {0, 1, 2}
    assert drawn(min_p=0.25) == {0, 1, 2}


def test_temperature_sharpens_and_flattens(sampler: Sampler) -> None:
    logits = np.log(np.array([0.6, 0.4] + [1e-12] * (VOCAB - 2), np.float32))
    share = {}
    for temperature in (0.25, 1.0, 4.0):
        rows = [row(temperature=temperature, top_k=2, seed=i) for i in range(64)]
        share[temperature] = Counter(run(sampler, [logits] * 64, rows).token_ids)[0]
    assert share[0.25] > share[1.0] > share[4.0] > 25


# -- randomness -----------------------------------------------------------------------------------------


def test_batches_do_not_change_tokens(sampler: Sampler) -> None:
    logits = random_logits(12, 5)
    options: list[dict[str, Any]] = [
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 5},
        {"temperature": 1.3, "top_p": 0.8, "logprobs": 2},
        {"repetition_penalty": 1.3},
        {"temperature": 0.9, "min_p": 0.1, "presence_penalty": 0.5},
        {"temperature": 1.0, "logit_bias": {3: 2.0}, "bad_words": ((2,),)},
    ]
    make = lambda: [row(generated=(i, 2), seed=i * 77, **options[i % 6]) for i in range(12)]  # noqa: E731
    batch = run(sampler, logits, make())
    for i, state in enumerate(make()):
        alone = run(sampler, logits[i : i + 1], [state])
        assert (alone.token_ids[0], alone.logprobs[0]) == (batch.token_ids[i], batch.logprobs[i])
    order = [7, 0, 11, 3, 5]
    rows = make()
    assert run(sampler, logits[order], [rows[i] for i in order]).token_ids == [
        batch.token_ids[i] for i in order
    ]


def test_one_op_draws_what_two_ops_draw(sampler: Sampler) -> None:
    if not sampler._fused:
        pytest.skip("no fused draw by the maker of the others")
    logits = random_logits(30, 6)
    rows = [row(temperature=0.3 * i, top_k=i % 7, top_p=1 - i / 60, logprobs=2) for i in range(30)]
    fused = run(sampler, logits, rows)
    assert "sample_top_k_top_p" not in called(sampler, logits, rows)
    sampler._fused = False
    assert run(sampler, logits, rows) == fused
    assert "sample_from_logits" not in called(sampler, logits, rows)


def test_seed_and_position_key_the_draw(sampler: Sampler) -> None:
    flat = np.zeros((1, VOCAB), np.float32)

    def stream(seed: int) -> list[int]:
        state = row(temperature=1.0, seed=seed)
        for _ in range(12):
            state.generated_ids.append(run(sampler, flat, [state]).token_ids[0])
        return state.generated_ids

    assert stream(5) == stream(5)
    assert stream(5) != stream(6)
    assert len(set(stream(5))) > 4


def test_changed_batches_are_noticed(sampler: Sampler) -> None:
    """Parameters stay on the device between steps: another batch of the same size must replace them."""
    flat = np.zeros((2, VOCAB), np.float32)
    flat[:, 7] = 3
    sharp, wide = (
        [row(temperature=0.05, seed=i) for i in (1, 2)],
        [row(temperature=50.0, seed=i) for i in (1, 2)],
    )
    first = run(sampler, flat, wide).token_ids
    assert run(sampler, flat, sharp).token_ids == [7, 7]
    assert run(sampler, flat, wide).token_ids == first
    assert run(sampler, flat, [sharp[0], wide[1]]).token_ids == [7, first[1]]


def test_drawn_distribution(sampler: Sampler) -> None:
    """Pearson's chi-square over 6400 draws of one row; 33 is beyond 1 in 10^5 at 5 degrees of freedom."""
    probs = np.array([0.3, 0.25, 0.2, 0.1, 0.1, 0.05])
    logits = np.full(VOCAB, -np.inf, np.float32)
    logits[10:16] = np.log(probs)
    rows = [row(temperature=1.0, seed=1000 + i) for i in range(64)]
    found = np.zeros(VOCAB)
    for _ in range(100):
        tokens = run(sampler, [logits] * 64, rows).token_ids
        np.add.at(found, tokens, 1)
        for state, token in zip(rows, tokens, strict=True):
            state.generated_ids.append(token)
    expected = probs * found.sum()
    assert found.sum() == found[10:16].sum() == 6400
    assert np.sum((found[10:16] - expected) ** 2 / expected) < 33


# -- log-probabilities -----------------------------------------------------------------------------------


def log_softmax(logits: Array) -> Array:
    wide = logits.astype(np.float64)
    return wide - np.log(np.sum(np.exp(wide)))


@pytest.mark.parametrize("params", [{}, {"temperature": 0.5, "top_k": 3}, {"logit_bias": {7: 60.0}}])
def test_logprobs_are_raw(sampler: Sampler, params: dict[str, Any]) -> None:
    logits = random_logits(2, 8)
    result = run(sampler, logits, [row(**params), row(logprobs=4, **params)])
    got, token = result.logprobs[1], result.token_ids[1]
    want = log_softmax(logits[1])
    assert result.logprobs[0] is None
    assert isinstance(got, TokenLogprobs)
    assert got.logprob == pytest.approx(want[token], abs=1e-5)
    assert got.rank == np.count_nonzero(logits[1] >= logits[1][token])
    assert got.top_ids == np.argsort(-logits[1], kind="stable")[:4].tolist()
    assert got.top_logprobs == pytest.approx(want[got.top_ids], abs=1e-5)


def test_logprobs_follow_the_grammar_mask(sampler: Sampler) -> None:
    state = row(logprobs=3)
    state.bitmask = np.array([1 << 5 | 1 << 6, 0], np.int32)
    got = run(sampler, [peaked(7, 6, 5)], [state]).logprobs[0]
    assert got is not None
    assert got.top_ids[:2] == [6, 5]
    assert got.logprob == pytest.approx(-np.log1p(np.exp(-1)), abs=1e-5)
    assert np.isfinite(got.top_logprobs).all()


def test_each_row_gets_as_many_alternatives_as_it_asked_for(sampler: Sampler) -> None:
    result = run(sampler, random_logits(4), [row(logprobs=0), row(logprobs=5), row(), row(logprobs=2)])
    assert [None if lp is None else len(lp.top_ids) for lp in result.logprobs] == [0, 5, None, 2]


def test_score_gives_prompt_logprobs(sampler: Sampler) -> None:
    logits = random_logits(3)
    got = sampler.score(sampler.platform.from_host(logits), [4, 0, 39], 2)
    assert [s.logprob for s in got] == pytest.approx(
        [log_softmax(x)[t] for x, t in zip(logits, (4, 0, 39), strict=True)], abs=1e-5
    )
    assert [len(s.top_ids) for s in got] == [2, 2, 2]
    assert sampler.score(sampler.platform.from_host(logits[:0]), [], 2) == []


# -- borders ---------------------------------------------------------------------------------------------


def test_empty_batch(sampler: Sampler) -> None:
    assert run(sampler, np.empty((0, VOCAB)), []) == SampleResult([], [])


def test_wrong_shapes_are_refused(sampler: Sampler) -> None:
    with pytest.raises(ValueError, match=r"want logits \[2, 40\] for at most 64 rows, have \[1, 40\]"):
        run(sampler, random_logits(1), [row(), row()])
    with pytest.raises(ValueError, match="at most 64 rows"):
        run(sampler, random_logits(65), [row()] * 65)


def test_broken_logits_give_a_token_in_range(sampler: Sampler) -> None:
    logits = np.stack([np.full(VOCAB, np.nan), np.full(VOCAB, -np.inf), np.full(VOCAB, np.inf)])
    rows = [row(temperature=t) for t in (1.0, 1.0, 1.0)]
    assert all(0 <= t < VOCAB for t in run(sampler, logits, rows).token_ids)
    assert run(sampler, logits, [row(), row(), row()]).token_ids == [0, 0, 0]


def test_staged_values_are_sent_only_when_they_change(session: Any) -> None:
    platform = session.platform
    staged = Staged(Transit(platform, session.device))

    def put(values: Any) -> tuple[list[Any], int]:
        """What the device holds, and the copies that it took."""
        before = getattr(platform, "copies", 0)
        tensor = staged.put("x", np.array(values))
        copies = getattr(platform, "copies", 0) - before
        return platform.to_host(tensor).tolist(), copies

    assert put([0, 1, 2])[0] == [0, 1, 2]
    assert put([0, 1, 2]) == ([0, 1, 2], 0)
    assert put(list(range(40)))[0] == list(range(40))
    assert put([[9, 8]])[0] == [[9, 8]]
    assert put([9, 8, 2])[1] == 0


def test_history_uploads_new_tokens_only(session: Any) -> None:
    history = TokenHistory(Transit(session.platform, session.device), [5, 6])
    assert session.platform.to_host(history.sync([5, 6, 7])).tolist() == [[5, 6, 7]]
    before = getattr(session.platform, "copies", 0)
    tensor = history.sync([5, 6, 7])
    assert getattr(session.platform, "copies", 0) == before
    assert session.platform.to_host(tensor).tolist() == [[5, 6, 7]]
    long = list(range(200))
    assert session.platform.to_host(history.sync([5, 6, 7, *long])).tolist() == [[5, 6, 7, *long]]
    assert session.platform.to_host(history.sync([5, 6])).tolist() == [[5, 6]]
    assert session.platform.to_host(history.sync([5, 6, 9])).tolist() == [[5, 6, 9]]
