"""The late device (`conftest.late_session`): never waited for without need, and mistakes show there."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from fd_core.engine import transit
from fd_core.engine.build import BuiltEngine
from fd_core.engine.dummy import DummyRunner
from fd_core.engine.step_inputs import InputBuilder
from fd_core.testkit.engine_checks import engine_findings
from fd_core.testkit.model_checks import CONFIG as TINY
from fd_core.testkit.simulated import SimulatedEvent, SimulatedPlatform
from tests.worker.conftest import late_session
from tests.worker.model_runner import run_together
from tests.worker.test_lookahead import one

Build = Callable[..., BuiltEngine]


class Watch:
    """Counts what is asked of the late device."""

    def __init__(self, monkeypatch: Any) -> None:
        self.calls: Counter[str] = Counter()
        self.behind: list[int] = []  # work still queued each time tokens have been waited for
        for name in ("to_host", "copy_", "synchronize", "empty", "from_host", "enqueue_copy"):
            self._wrap(monkeypatch, SimulatedPlatform, name)
        wait = SimulatedEvent.wait

        def watched(event: SimulatedEvent) -> None:
            wait(event)
            self.behind.append(len(event._platform._queue))

        monkeypatch.setattr(SimulatedEvent, "wait", watched)

    def _wrap(self, monkeypatch: Any, cls: type, name: str) -> None:
        plain = getattr(cls, name)

        def counted(*args: Any) -> Any:
            self.calls[name] += 1
            return plain(*args)

        monkeypatch.setattr(cls, name, counted)


@pytest.mark.parametrize(
    ("params", "copies"),
    [
        ({"temperature": 0.0}, 2),  # inputs there, tokens back
        ({"temperature": 0.7, "top_p": 0.9}, 3),  # and the positions of the draws
        ({"temperature": 0.0, "logprobs": 2}, 6),  # and log-probabilities back
        ({"temperature": 0.0, "repetition_penalty": 1.2}, 4),  # and each row's last token
    ],
)
@pytest.mark.parametrize("graphs", [False, True])
def test_steady_decoding_waits_for_nothing_but_tokens(
    build_late: Build, monkeypatch: Any, graphs: bool, params: dict[str, Any], copies: int
) -> None:
    built = build_late(enable_graphs=graphs)
    for name in "ab":
        built.engine.add_request(one(name, max_tokens=40, ignore_eos=True, **params))
    for _ in range(6):
        built.engine.step()
    watch, steps = Watch(monkeypatch), 20
    for _ in range(steps):
        assert len(built.engine.step()) == 2
    assert watch.calls == {"enqueue_copy": steps * copies}
    assert len(watch.behind) == 2 * steps  # for the tokens, and for pinned memory of two steps ago
    assert all(left > 5 for left in watch.behind[1::2])  # the next step was there before the tokens were


def test_the_device_decides_unless_told(build: Build, build_late: Build) -> None:
    assert build_late().engine.lookahead
    assert not build_late(async_scheduling="off").engine.lookahead
    assert not build().engine.lookahead
    assert build(async_scheduling="on").engine.lookahead
    with pytest.raises(ValueError, match="async_scheduling: want one of auto, on, off; have 'yes'"):
        build(async_scheduling="yes")


def test_dummy_runs_on_a_late_device(build_late: Build) -> None:
    built = build_late()
    dummy = DummyRunner(built.model, max_num_tokens=64, max_model_len=256, block_size=8)
    report = dummy.run(3, [1, 50, 100], 4)
    assert report.finite_logits
    assert report.tokens == 151 + 3 * 3


# -- the tests can fail -------------------------------------------------------------------------------


def no_wait(monkeypatch: Any) -> None:
    """Tokens are read before they are there."""
    monkeypatch.setattr(SimulatedEvent, "wait", lambda self: None)


def one_turn(monkeypatch: Any) -> None:
    """The pinned memory of a step in flight is overwritten."""
    monkeypatch.setattr(transit, "DEPTH", 1)
    monkeypatch.setattr(transit._Turn, "begin", lambda self: setattr(self, "_used", 0))


def no_staging(monkeypatch: Any) -> None:
    """Copies read the engine's own arrays, which it goes on to change."""
    monkeypatch.setattr(transit._Turn, "stage", lambda self, values, like: transit.from_numpy(values))


def stale_tokens(monkeypatch: Any) -> None:
    """The next step takes what the host knows, not what the device has sampled."""
    plain = InputBuilder._sources
    monkeypatch.setattr(InputBuilder, "_sources", lambda *args: plain(*args[:2], [], args[3]))


@pytest.mark.parametrize("plant", [no_wait, one_turn, no_staging, stale_tokens])
def test_planted_mistakes_are_seen(
    build_late: Build, monkeypatch: Any, plant: Callable[[Any], None]
) -> None:
    requests = [one(name, ignore_eos=True, max_tokens=12, temperature=0.8) for name in "abcd"]
    want = run_together(build_late(async_scheduling="off"), requests)
    assert run_together(build_late(), requests) == want
    plant(monkeypatch)
    try:
        have = run_together(build_late(), requests)
    except (ValueError, IndexError, OverflowError, AssertionError):
        return
    assert have != want


def test_the_kit_sees_whether_a_device_keeps_its_order(monkeypatch: Any, tmp_path: Any) -> None:
    session = late_session()
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    assert dict(engine_findings(session, tmp_path)) == {"queued_copies": None, "looking_ahead": None}
    no_wait(monkeypatch)
    found = dict(engine_findings(session, tmp_path))
    assert "want the copy that was queued last, have [3]" in str(found["queued_copies"])
    assert found["looking_ahead"] is not None
