"""Planning a step while the one before runs: the same bits as step by step, whatever happens between.

`late` is a device that runs everything as late as it may (`conftest.late_session`): host memory that is
changed too early or read too early gives wrong tokens there. On fd-cpu calls are done when they return.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fd_core.engine import step_inputs
from fd_core.engine.buffers import Pack
from fd_core.engine.build import BuiltEngine
from fd_core.engine.engine import Engine
from fd_core.engine.request import EngineOutput, EngineRequest, FinishReason, SamplingParams
from fd_core.testkit.faults import Faults
from tests.worker.model_runner import Result, assert_idle, collect, digest, run_together

Build = Callable[..., BuiltEngine]
BLOCKS = 14


class Ladder:
    """A grammar: each token's remainder by 5 is one more than that of the token before."""

    def __init__(self) -> None:
        self.words = np.full(16, -1, np.int32)

    def bitmask(self) -> np.ndarray[Any, Any]:
        return self.words

    def accept(self, token: int) -> str:
        allowed = (np.arange(512) % 5 == (token + 1) % 5) & (np.arange(512) < 500)
        self.words = np.packbits(allowed, bitorder="little").view(np.int32)
        return ""


class Ladders:
    def start(self, *_: str) -> Ladder:
        return Ladder()


STOPS = tuple(range(0, 500, 9))
WISHES: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.9, "top_p": 0.8, "logprobs": 3},
    {"stop_token_ids": STOPS},
    {"stop_token_ids": STOPS, "min_tokens": 5, "logprobs": 1},
    {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "temperature": 0.0},
    {"bad_words": ((7,), (3, 4)), "presence_penalty": 0.5},
    {"guided": ("regex", "ladder"), "temperature": 1.0},
    {"prompt_logprobs": 2, "logprobs": 0},
    {"n": 3, "top_k": 30, "stop_token_ids": STOPS},
    {"logit_bias": {5: 4.0}, "allowed_token_ids": tuple(range(100)), "max_tokens": 2},
    {"max_tokens": 1},
    {"max_tokens": 0, "prompt_logprobs": 1},
]
LENGTHS = (1, 7, 8, 9, 40, 70)


def wishes() -> list[EngineRequest]:
    """One request for everything that a completion can ask for; every other prompt shares a beginning."""
    rng = random.Random(3)
    shared = [rng.randrange(499) for _ in range(80)]
    made = []
    for i, wish in enumerate(WISHES):
        length = LENGTHS[i % len(LENGTHS)]
        own = [rng.randrange(499) for _ in range(length)]
        params = SamplingParams(**{"max_tokens": 14, "seed": i, **wish})
        prompt = shared[: length - 1] + own[:1] if i % 2 else own
        made.append(
            EngineRequest(request_id=f"w{i}", prompt_token_ids=prompt, params=params, arrival_time=1.0 + i)
        )
    return made


@pytest.fixture(scope="module", params=["cpu", "late"])
def make(request: Any, build: Build, build_late: Build) -> Build:
    """Engines that look ahead, with a grammar."""
    chosen = build if request.param == "cpu" else build_late

    def made(**options: Any) -> BuiltEngine:
        built = chosen(**{"async_scheduling": "on", **options})
        built.engine.guided = Ladders()
        return built

    return made


@pytest.fixture(scope="module")
def alone(make: Build) -> Result:
    return one_by_one(make)


def one_by_one(make: Build) -> Result:
    """Each request on its own, step by step, without graphs."""
    built = make(async_scheduling="off", enable_prefix_caching=False, enable_graphs=False)
    result: Result = {}
    for wish in wishes():
        built.engine.add_request(wish)
        result |= collect(built.engine)
    assert any(len(outputs) < 13 for outputs in result.values())  # some stop early
    return result


def tight(make: Build, **options: Any) -> BuiltEngine:
    """Memory for `BLOCKS` blocks alone: sequences push one another out."""
    bytes_per_block = sum(layout.bytes_per_block for layout in make().model.kv_layouts())
    return make(kv_cache_memory=BLOCKS * bytes_per_block, max_model_len=112, **options)


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("budget", [8, 64, 256])
def test_batches_and_chunks_change_no_bit(make: Build, alone: Result, budget: int, graphs: bool) -> None:
    built = make(max_num_batched_tokens=budget, enable_graphs=graphs)
    assert run_together(built, wishes()) == alone
    assert_idle(built.engine)


@pytest.mark.parametrize("few", [1, 8])
@pytest.mark.parametrize("graphs", [False, True])
def test_block_tables_sent_row_by_row_change_no_bit(
    make: Build, alone: Result, monkeypatch: Any, graphs: bool, few: int
) -> None:
    """As large tables are, while few rows change."""
    monkeypatch.setattr(step_inputs, "_SMALL_TABLE", 0)
    monkeypatch.setattr(step_inputs, "_FEW_ROWS", few)
    built = tight(make, enable_graphs=graphs)
    sent: list[int] = []
    send_row = Pack.send_row

    def counted(pack: Pack, layout: Any, name: str, row: int) -> None:
        sent.append(row)
        send_row(pack, layout, name, row)

    monkeypatch.setattr(Pack, "send_row", counted)
    assert run_together(built, wishes()) == alone
    assert run_together(built, wishes()) == alone
    assert len(sent) >= 3


def test_prefix_hits_change_no_bit(make: Build, alone: Result) -> None:
    built = make()
    assert run_together(built, wishes()) == alone
    before = built.engine.stats().prefix_hits
    assert run_together(built, wishes()) == alone
    assert built.engine.stats().prefix_hits - before > 100


@pytest.mark.parametrize("swap_space", [0, 1 << 20])
def test_preemption_changes_no_bit(make: Build, alone: Result, swap_space: int) -> None:
    built = tight(make, swap_space=swap_space)
    assert run_together(built, wishes()) == alone
    assert built.engine.stats().preemptions > 3
    assert_idle(built.engine)


@pytest.mark.parametrize("seed", range(12))
def test_arrivals_and_aborts_at_any_moment(make: Build, alone: Result, seed: int) -> None:
    """What is not aborted is exact, what is aborted is exact as far as it goes, nothing is left behind."""
    rng = random.Random(seed)
    built = tight(make, swap_space=rng.choice([0, 1 << 20]), max_num_batched_tokens=rng.choice([8, 32]))
    engine, queue = built.engine, wishes() * 2
    rng.shuffle(queue)
    result: Result = {}
    aborted: set[tuple[str, int]] = set()
    while queue or engine.has_work:
        while queue and rng.random() < 0.4 and queue[-1].request_id not in engine.requests:
            request = queue.pop()
            keys = [(request.request_id, i) for i in range(request.params.n)]
            check(result, alone, keys, aborted)
            engine.add_request(request)
        if rng.random() < 0.1:
            aborted |= abort_one(engine, rng)
        for output in engine.step():
            assert not output.error
            assert (output.request_id, output.index) not in aborted
            result.setdefault((output.request_id, output.index), []).append(digest(output))
        if queue and queue[-1].request_id in engine.requests:
            rng.shuffle(queue)
    check(result, alone, list(alone), aborted)
    assert_idle(engine)


def check(result: Result, alone: Result, keys: list[tuple[str, int]], aborted: set[Any]) -> None:
    """What came out under `keys` so far, which then start anew."""
    for key in keys:
        have = result.pop(key, None)
        if key in aborted:
            aborted.discard(key)
            assert have is None or have == alone[key][: len(have)]
        else:
            assert have is None or have == alone[key]


def abort_one(engine: Engine, rng: random.Random) -> set[tuple[str, int]]:
    if not engine.requests:
        return set()
    name = rng.choice(list(engine.requests))
    index = rng.choice([None, 0])
    hit = [seq for seq in engine.requests[name] if index in (None, seq.index) and seq.finish is None]
    engine.abort(name, index)
    return {(name, seq.index) for seq in hit}


# -- rows ---------------------------------------------------------------------------------------------


def rows_launched(built: BuiltEngine, monkeypatch: Any) -> list[int]:
    rows: list[int] = []
    launch = built.engine.runner.launch

    def counted(plan: Any) -> Any:
        rows.append(plan.num_tokens)
        return launch(plan)

    monkeypatch.setattr(built.engine.runner, "launch", counted)
    return rows


def one(name: str, **params: Any) -> EngineRequest:
    given = {"max_tokens": 6, "temperature": 0.0, **params}
    return EngineRequest(request_id=name, prompt_token_ids=[1, 2, 3], params=SamplingParams(**given))


def test_a_length_known_in_advance_costs_no_row(make: Build, monkeypatch: Any) -> None:
    built = make()
    rows = rows_launched(built, monkeypatch)
    built.engine.add_request(one("a", ignore_eos=True))
    collect(built.engine)
    assert rows == [3, 1, 1, 1, 1, 1]


def test_an_end_that_nobody_knew_costs_one_row(make: Build, monkeypatch: Any) -> None:
    built = make()
    rows = rows_launched(built, monkeypatch)
    built.engine.add_request(one("a", stop_token_ids=tuple(range(500)), min_tokens=2))
    outputs = collect(built.engine)["a", 0]
    assert len(outputs) == 2
    assert rows == [3, 1, 1]
    assert_idle(built.engine)


def test_news_comes_one_step_late(make: Build) -> None:
    built = make()
    built.engine.add_request(one("a", max_tokens=1))
    assert built.engine.step() == []
    assert built.engine.has_work
    (output,) = built.engine.step()
    assert output.finish_reason is FinishReason.LENGTH
    assert not built.engine.has_work


# -- failures -----------------------------------------------------------------------------------------


def run_through(engine: Engine) -> tuple[Result, set[str]]:
    """Results, and the requests that ended in an error."""
    result: Result = {}
    failed = set()
    while engine.has_work:
        for output in engine.step():
            if output.finish_reason is FinishReason.ERROR:
                failed.add(output.request_id)
            else:
                result.setdefault((output.request_id, output.index), []).append(digest(output))
    return result, failed


@pytest.mark.parametrize("moment", range(1, 12, 2))
@pytest.mark.parametrize("stage", ["launch", "sample", "collect"])
def test_a_broken_step_ends_its_requests_and_no_others(
    make: Build, alone: Result, monkeypatch: Any, stage: str, moment: int
) -> None:
    """Whatever was launched behind it is planned anew."""
    built = tight(make, swap_space=1 << 20 if moment % 4 == 1 else 0)
    runner, calls = built.engine.runner, Counter[str]()
    plain = getattr(runner, stage)
    hit: set[str] = set()

    def broken(subject: Any) -> Any:
        calls[stage] += 1
        if calls[stage] == moment:
            plan = getattr(subject, "plan", subject)
            hit.update(item.seq.request.request_id for item in plan.items)
            raise OSError("the device hiccuped")
        return plain(subject)

    monkeypatch.setattr(runner, stage, broken)
    for request in wishes():
        built.engine.add_request(request)
    result, failed = run_through(built.engine)
    assert failed
    assert failed <= hit
    survivors = [key for key in alone if key[0] not in hit]
    assert survivors
    assert {key: result[key] for key in survivors} == {key: alone[key] for key in survivors}
    assert_idle(built.engine)


def test_a_failure_of_the_device_surfaces_where_the_tokens_are_read(build_late: Build) -> None:
    built = build_late(enable_graphs=False)
    platform = built.session.platform
    built.engine.add_request(one("a", max_tokens=20))
    for _ in range(4):
        built.engine.step()
    calls = sum(row.calls for row in built.session.ledger.rows())
    platform._faults = Faults({"async": calls + 3})
    outputs: list[EngineOutput] = []
    while built.engine.has_work:
        outputs += built.engine.step()
    assert outputs[-1].finish_reason is FinishReason.ERROR
    assert f"DeviceError: platform 'simulated': want a working device, have kernel call {calls + 3}" in (
        outputs[-1].error
    )
    assert_idle(built.engine)
