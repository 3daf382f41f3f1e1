"""Engine and runner on a small model: the same numbers whatever else happens in a step; dummy runs."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from fd_core.engine.build import BuiltEngine
from fd_core.engine.dummy import DummyRunner
from fd_core.engine.engine import Engine, RequestRefusedError
from fd_core.engine.request import EngineOutput, EngineRequest, FinishReason, SamplingParams

Build = Callable[..., BuiltEngine]
Result = dict[tuple[str, int], list[Any]]


def requests(count: int = 6) -> list[EngineRequest]:
    """Prompts of many lengths, half of them greedy, all with log-probabilities to compare bits."""
    rng = random.Random(7)
    made = []
    for i in range(count):
        prompt = [rng.randrange(499) for _ in range((1, 7, 8, 9, 40, 90)[i % 6])]
        params = SamplingParams(
            max_tokens=12,
            temperature=0.0 if i % 2 else 0.8,
            top_k=20 if i % 3 else 0,
            top_p=0.9,
            seed=i,
            logprobs=3,
            ignore_eos=True,
        )
        made.append(
            EngineRequest(request_id=f"r{i}", prompt_token_ids=prompt, params=params, arrival_time=1.0 + i)
        )
    return made


def collect(engine: Engine, limit: int = 2000) -> Result:
    """Tokens and log-probabilities by (request, completion) until nothing is left."""
    result: Result = {}
    for _ in range(limit):
        if not engine.has_work:
            return result
        for output in engine.step():
            result.setdefault((output.request_id, output.index), []).append(digest(output))
    raise AssertionError("the engine does not come to an end")


def digest(output: EngineOutput) -> Any:
    return (output.token_ids, [(p.logprob, p.rank, p.top_ids, p.top_logprobs) for p in output.logprobs])


def run_together(built: BuiltEngine, batch: list[EngineRequest]) -> Result:
    for request in batch:
        built.engine.add_request(request)
    return collect(built.engine)


def run_alone(build: Build, batch: list[EngineRequest]) -> Result:
    built = build(enable_prefix_caching=False)
    result: Result = {}
    for request in batch:
        built.engine.add_request(request)
        result |= collect(built.engine)
    return result


@pytest.fixture(scope="module")
def alone(build: Build) -> Result:
    return run_alone(build, requests())


def assert_idle(engine: Engine) -> None:
    stats = engine.stats()
    assert stats.running == stats.waiting == 0
    assert stats.blocks_free + stats.blocks_cached == stats.blocks_total
    assert engine.kv.host.owned == 0
    assert not engine.requests


def test_batching_changes_no_bit(build: Build, alone: Result) -> None:
    built = build(max_num_batched_tokens=256)
    assert run_together(built, requests()) == alone
    assert_idle(built.engine)


def test_chunked_prefill_changes_no_bit(build: Build, alone: Result) -> None:
    built = build(max_num_batched_tokens=8)
    assert run_together(built, requests()) == alone


def test_prefix_hits_change_no_bit(build: Build, alone: Result) -> None:
    built = build()
    assert run_together(built, requests()) == alone
    assert run_together(built, requests()) == alone
    assert built.engine.stats().prefix_hits > 100


@pytest.mark.parametrize("swap_space", [0, 1 << 20])
def test_preemption_changes_no_bit(build: Build, alone: Result, swap_space: int) -> None:
    layouts = build().model.kv_layouts()
    memory = 14 * sum(layout.bytes_per_block for layout in layouts)
    built = build(kv_cache_memory=memory, max_model_len=112, swap_space=swap_space)
    assert run_together(built, requests()) == alone
    assert built.engine.stats().preemptions > 0
    assert_idle(built.engine)


def test_several_completions_share_the_prompt_and_differ_by_seed(build: Build) -> None:
    params = SamplingParams(max_tokens=6, temperature=1.0, seed=3, n=3, ignore_eos=True)
    request = EngineRequest(request_id="n", prompt_token_ids=list(range(40)), params=params)
    built = build(enable_prefix_caching=False)
    first = run_together(built, [request])
    assert run_together(built, [request]) == first
    texts = [tuple(token for (ids, _) in first["n", i] for token in ids) for i in range(3)]
    assert len(set(texts)) == 3
    assert_idle(built.engine)


def test_prompt_logprobs_are_those_of_decoding_the_prompt(build: Build) -> None:
    """Token i of a prompt must score as if it had been sampled after the tokens before it."""
    built = build(max_num_batched_tokens=16)
    prompt = [5, 17, 400, 3, 250, 9, 9, 81, 33, 2, 77, 140, 12, 8, 66, 31, 90, 4, 55, 21]
    whole = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=2)
    built.engine.add_request(EngineRequest(request_id="p", prompt_token_ids=prompt, params=whole))
    scored = None
    while built.engine.has_work:
        for output in built.engine.step():
            scored = output.prompt_logprobs or scored
    assert scored is not None
    assert len(scored) == len(prompt)
    assert scored[0] is None
    for i in range(1, len(prompt)):
        only = SamplingParams(max_tokens=1, temperature=0.0, logprobs=2, allowed_token_ids=(prompt[i],))
        built.engine.add_request(
            EngineRequest(request_id=f"d{i}", prompt_token_ids=prompt[:i], params=only)
        )
        (output,) = [o for _ in range(9) if built.engine.has_work for o in built.engine.step()]
        entry = scored[i]
        assert entry is not None
        assert output.token_ids == [prompt[i]]
        assert output.logprobs[0] == entry


def test_abort_at_any_moment_gives_everything_back(build: Build) -> None:
    built = build(kv_cache_memory=None)
    rng = random.Random(5)
    for round_number in range(30):
        batch = requests(4)
        for request in batch:
            built.engine.add_request(request)
        for _ in range(rng.randrange(6)):
            built.engine.step()
        for request in batch:
            built.engine.abort(request.request_id, None if round_number % 2 else 0)
        assert_idle(built.engine)


def test_survivors_of_an_abort_are_exact(build: Build, alone: Result) -> None:
    built = build()
    for request in requests():
        built.engine.add_request(request)
    built.engine.step()
    built.engine.abort("r1")
    built.engine.abort("r4")
    rest = collect(built.engine)
    for key, value in alone.items():
        if key[0] not in ("r1", "r4"):
            assert value[-len(rest[key]) :] == rest[key]


def test_eos_stops_and_min_tokens_delays_it(build: Build) -> None:
    built = build()
    force_eos = SamplingParams(
        max_tokens=10, allowed_token_ids=(499, 7), logit_bias={499: 50.0}, temperature=0.0
    )
    late = SamplingParams(
        max_tokens=10, allowed_token_ids=(499, 7), logit_bias={499: 50.0}, temperature=0.0, min_tokens=4
    )
    for name, params, length in (("now", force_eos, 1), ("late", late, 5)):
        built.engine.add_request(EngineRequest(request_id=name, prompt_token_ids=[1, 2], params=params))
        outputs = []
        while built.engine.has_work:
            outputs += built.engine.step()
        assert len(outputs) == length
        assert outputs[-1].finish_reason is FinishReason.STOP
        assert outputs[-1].stop_token_id == 499


@pytest.mark.parametrize(
    ("prompt", "params", "names"),
    [
        ([], {}, "at least one token"),
        ([1] * 256, {}, "context of 256"),
        ([500], {}, "token id 500"),
        ([-1], {}, "token id -1"),
        ([1], {"logprobs": 21}, "at most 20"),
        ([1], {"n": 9}, "n: want at most 8"),
        ([1], {"stop_token_ids": (500,)}, "stop_token_ids"),
        ([1], {"logit_bias": {1000: 1.0}}, "logit_bias"),
        ([1], {"bad_words": ((1, 600),)}, "bad_words: token id 600"),
        ([1], {"bad_words": ((1,),) * 65}, "FD_MAX_BAD_WORDS_NUM"),
        ([1], {"bad_words": ((1,) * 17,)}, "FD_BAD_WORDS_MAX_LEN"),
        ([1], {"bad_words": ((),)}, "FD_BAD_WORDS_MAX_LEN"),
        ([1], {"guided": ("regex", "a+")}, "without a tokenizer"),
    ],
)
def test_what_can_never_be_served_is_refused(
    build: Build, prompt: list[int], params: Any, names: str
) -> None:
    engine = build().engine
    request = EngineRequest(request_id="x", prompt_token_ids=prompt, params=SamplingParams(**params))
    with pytest.raises(RequestRefusedError, match=names):
        engine.add_request(request)
    assert_idle(engine)


def test_a_broken_step_ends_its_requests_and_no_others(
    build: Build, alone: Result, monkeypatch: Any
) -> None:
    built = build()
    first, second = requests()[:2]
    built.engine.add_request(first)
    monkeypatch.setattr(built.model, "forward", lambda *_: 1 / 0)
    (output,) = built.engine.step()
    assert output.finish_reason is FinishReason.ERROR
    assert "ZeroDivisionError" in output.error
    assert_idle(built.engine)
    monkeypatch.undo()
    assert run_together(built, [second])["r1", 0] == alone["r1", 0]


def test_a_swap_that_breaks_costs_its_victim_nothing(build: Build, alone: Result, monkeypatch: Any) -> None:
    """The copy out of the device fails: whoever was to be swapped must not come back with other bytes."""
    layouts = build().model.kv_layouts()
    memory = 14 * sum(layout.bytes_per_block for layout in layouts)
    built = build(kv_cache_memory=memory, max_model_len=112, swap_space=1 << 20)
    pools, broken = built.engine.runner.pools, []

    def swap_out(pairs: Any) -> None:
        if pairs and not broken:
            broken.append(pairs)
            raise OSError("the copy failed")
        type(pools).swap_out(pools, pairs)

    monkeypatch.setattr(pools, "swap_out", swap_out)
    for request in requests():
        built.engine.add_request(request)
    result: Result = {}
    failed = set()
    while built.engine.has_work:
        for output in built.engine.step():
            if output.finish_reason is FinishReason.ERROR:
                failed.add((output.request_id, output.index))
            else:
                result.setdefault((output.request_id, output.index), []).append(digest(output))
    assert broken
    assert failed
    survivors = set(alone) - failed
    assert survivors
    assert {key: result[key] for key in survivors} == {key: alone[key] for key in survivors}
    assert_idle(built.engine)


# -- dummy runs (modules.md §4.4) -------------------------------------------------------------------


@pytest.fixture(scope="module")
def dummy(build: Build) -> DummyRunner:
    model = build().model
    return DummyRunner(model, max_num_tokens=64, max_model_len=256, block_size=8)


@pytest.mark.parametrize(
    ("batch", "prompt", "decode", "mode"),
    [
        (1, 1, 0, "prefill"),
        (1, 200, 3, "mixed"),
        (8, 20, 5, "decode"),
        (3, [1, 50, 100], 2, "mixed"),
        (64 // 8, 1, 1, "mixed"),
    ],
)
def test_dummy_run_takes_any_sizes(
    dummy: DummyRunner, batch: int, prompt: Any, decode: int, mode: Any
) -> None:
    report = dummy.run(batch, prompt, decode, mode)
    total = batch * prompt if isinstance(prompt, int) else sum(prompt)
    assert report.finite_logits
    assert report.peak_memory > 0
    generated = 0 if mode == "prefill" else batch * max(0, decode - 1)  # the last token is not run
    assert sum(report.per_phase_tokens.values()) == total + generated
    assert report.tokens == (report.per_phase_tokens["decode"] if mode == "decode" else total + generated)
    assert report.wall_time >= sum(report.per_phase_time.values()) * 0.99


@pytest.mark.parametrize(
    ("batch", "prompt", "decode", "names"),
    [
        (0, 1, 0, "batch_size >= 1"),
        (2, [1], 0, "batch_size >= 1"),
        (1, 0, 0, ">= 1"),
        (1, 250, 10, "max_model_len 256"),
    ],
)
def test_dummy_run_refuses_what_cannot_be(
    dummy: DummyRunner, batch: int, prompt: Any, decode: int, names: str
) -> None:
    with pytest.raises(ValueError, match=names):
        dummy.run(batch, prompt, decode)


def test_dummy_runs_leave_the_engine_as_it_was(build: Build, alone: Result) -> None:
    built = build()
    for request in requests():
        built.engine.add_request(request)
    part = [digest(o) for _ in range(3) for o in built.engine.step()]
    before = built.engine.stats().blocks_free
    DummyRunner(built.model, max_num_tokens=64, max_model_len=256, block_size=8).run(4, 30, 4)
    assert built.engine.stats().blocks_free == before
    rest = collect(built.engine)
    assert part
    for key, value in rest.items():
        assert alone[key][-len(value) :] == value
