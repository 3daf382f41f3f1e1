"""Captured decode steps: the same bits as eager ones, recorded before any request, counted as run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from fd_core.api.platform import DeviceError
from fd_core.engine.build import BuiltEngine
from fd_core.testkit.simulated import GRAPH
from tests.worker.model_runner import Result, assert_idle, collect, requests, run_alone, run_together

Build = Callable[..., BuiltEngine]


@pytest.fixture(scope="module")
def alone(build: Build) -> Result:
    return run_alone(build, requests())


class Recorded:
    """A graph as a device records it: the addresses of the first step, whatever comes later."""

    def __init__(self, step: Callable[[], None]) -> None:
        self.replay = step
        step()


@pytest.fixture
def captures(build: Build, monkeypatch: Any) -> Callable[[Callable[[Any], Any]], None]:
    """Makes the platform one that captures, by the given function."""
    platform = type(build().session.platform)
    plain = platform.open

    def opened(self: Any, index: int) -> Any:
        device = plain(self, index)
        return replace(device, features=device.features | {"graph_capture"})

    def switch(capture: Callable[[Any], Any]) -> None:
        monkeypatch.setattr(platform, "open", opened)
        monkeypatch.setattr(platform, "capture", lambda self, step: capture(step))

    return switch


@pytest.mark.parametrize("blocks", [None, 14])
def test_captured_decode_steps_change_no_bit(
    build: Build, alone: Result, captures: Any, blocks: int | None
) -> None:
    layouts = build().model.kv_layouts()
    captures(Recorded)
    memory = None if blocks is None else blocks * sum(layout.bytes_per_block for layout in layouts)
    built = build(kv_cache_memory=memory, max_model_len=112 if blocks else None)
    assert run_together(built, requests()) == alone
    graphs = built.engine.runner.graphs
    assert graphs is not None
    assert graphs.replays > 8
    assert_idle(built.engine)


def test_all_sizes_are_recorded_before_the_first_request(build: Build, captures: Any) -> None:
    recorded: list[Recorded] = []
    captures(lambda step: recorded.append(Recorded(step)) or recorded[-1])
    built = build(max_num_seqs=20)
    graphs = built.engine.runner.graphs
    assert graphs.sizes == [1, 2, 4, 8, 16, 20]
    assert len(recorded) == 6
    run_together(built, requests())
    assert len(recorded) == 6
    plain = build(enable_graphs=False)
    run_together(plain, requests())
    assert len(recorded) == 6


def test_sizes_can_be_chosen(build: Build, captures: Any, alone: Result) -> None:
    captures(Recorded)
    built = build(graph_sizes=(2, 300, 1))
    graphs = built.engine.runner.graphs
    assert graphs.sizes == [1, 2]
    assert run_together(built, requests()) == alone  # most steps have six rows and run eagerly
    before = graphs.replays
    assert before < 5
    built.engine.add_request(requests()[1])
    collect(built.engine)
    assert graphs.replays - before == 11
    assert not build(graph_sizes=(300,)).engine.runner.graphs.enabled
    with pytest.raises(ValueError, match=r"graph_sizes: want numbers >= 1, have \[4, 0\]"):
        build(graph_sizes=(4, 0))


def test_replayed_ops_are_counted_as_if_they_were_called(build: Build, captures: Any) -> None:
    def calls(built: BuiltEngine) -> dict[str, int]:
        before = {row.op: row.calls for row in built.session.ledger.rows(all_ops=True)}
        run_together(built, requests())
        return {row.op: row.calls - before[row.op] for row in built.session.ledger.rows(all_ops=True)}

    captures(Unrun)
    replayed, eager = calls(build()), calls(build(enable_graphs=False))
    gathers = eager.pop("gather_tokens") - replayed.pop("gather_tokens")
    assert replayed == eager
    assert gathers > 8  # a recorded step needs no choice of rows


class Unrun:
    """Records as devices do: nothing runs, calls are counted at replay by the engine alone."""

    def __init__(self, step: Callable[[], None]) -> None:
        self.step = step
        step()

    def replay(self) -> None:
        return None


def test_a_device_without_capture_is_asked_once_or_never(build: Build, captures: Any) -> None:
    asked: list[object] = []
    captures(asked.append)
    built = build()
    run_together(built, requests())
    assert len(asked) == 1
    built = build(enable_graphs=False)
    run_together(built, requests())
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (MemoryError("want 5 bytes, have 0"), "lower max_num_seqs or memory_utilization"),
        (DeviceError("a call waited"), r"set enable_graphs=False \(--no-graphs\)"),
    ],
)
def test_a_step_that_cannot_be_recorded_stops_the_start(
    build: Build, captures: Any, error: Exception, fix: str
) -> None:
    def capture(step: Any) -> None:
        raise error

    captures(capture)
    with pytest.raises(type(error), match=f"decode step of 8 rows failed: {error}; fix: {fix}"):
        build()


def test_kernels_that_allocate_are_not_recorded(
    build_late: Build, caplog: pytest.LogCaptureFixture
) -> None:
    built = build_late(allocating="rms_norm")
    assert (
        "decode steps run eagerly: these ops allocate or are not the device's own: rms_norm" in caplog.text
    )
    assert not built.engine.runner.graphs.enabled


def test_memory_of_the_graphs_is_left_free(build_late: Build) -> None:
    """The KV pool is sized after what recorded steps take was measured and multiplied."""

    def blocks(**options: Any) -> int:
        built = build_late(capacity=900 << 10, **options)
        assert built.session.platform.memory().free >= 0
        assert built.engine.kv.pool.total < 8 * 32  # else memory did not bind
        return built.engine.kv.pool.total

    with_graphs, without = blocks(), blocks(enable_graphs=False)
    sizes, block_bytes = 4, 2 * 2 * 8 * 2 * 16 * 2
    reserved = (without - with_graphs) * block_bytes
    assert 0 <= reserved - sizes * GRAPH.nbytes <= 4096  # and what the first run of a step made
