"""The engine on a GPU: what `tests/worker/test_lookahead.py` asks, with the device's own kernels, and the
text that the oracles give.

A row has the same bits there in any batch and chunk. A preempted sequence that is computed anew has not:
what decoding wrote to the cache comes from a prefill then, whose attention sums in another order. Tests
with such sequences compare tokens.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fd_cuda")
from fd_core.engine.build import BuiltEngine, build_engine
from fd_core.engine.config import EngineConfig
from fd_core.engine.request import EngineRequest, SamplingParams
from fd_core.host.errors import FdError
from fd_core.host.session import open_session
from tests.worker import model_runner, test_lookahead
from tests.worker.conftest import CONFIG
from tests.worker.model_runner import Result, run_together
from tests.worker.test_lookahead import (  # noqa: F401
    Ladders,
    one_by_one,
    test_a_broken_step_ends_its_requests_and_no_others,
    test_a_length_known_in_advance_costs_no_row,
    test_an_end_that_nobody_knew_costs_one_row,
    test_arrivals_and_aborts_at_any_moment,
    test_batches_and_chunks_change_no_bit,
    test_preemption_changes_no_bit,
    test_prefix_hits_change_no_bit,
)

pytestmark = pytest.mark.device("cuda")
Build = Callable[..., BuiltEngine]
COMPUTED_ANEW = (
    "test_a_broken_step_ends_its_requests_and_no_others",
    "test_arrivals_and_aborts_at_any_moment",
    "test_preemption_changes_no_bit",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        open_session("cuda")
    except FdError as error:
        pytest.skip(f"no GPU: {error}")
    made = tmp_path_factory.mktemp("tiny-model")
    (made / "config.json").write_text(json.dumps(CONFIG))
    return made


@pytest.fixture(scope="module")
def make(folder: Path) -> Build:
    def made(**options: Any) -> BuiltEngine:
        given = {"block_size": 8, "max_num_seqs": 8, "max_num_batched_tokens": 64, "seed": 1, **options}
        given = {"platform": "cuda", "async_scheduling": "on", **given}
        built = build_engine(EngineConfig(model=str(folder), load_format="dummy", **given))
        built.engine.guided = Ladders()
        return built

    return made


@pytest.fixture(scope="module")
def exact(make: Build) -> Result:
    return one_by_one(make)


@pytest.fixture
def alone(request: pytest.FixtureRequest, exact: Result, monkeypatch: pytest.MonkeyPatch) -> Result:
    """Tokens and log-probabilities, or tokens alone."""
    if request.node.originalname not in COMPUTED_ANEW:
        return exact
    for module in (model_runner, test_lookahead):
        monkeypatch.setattr(module, "digest", lambda output: (output.token_ids, []))
    return {key: [(ids, []) for ids, _ in news] for key, news in exact.items()}


def test_the_text_is_the_oracles(make: Build) -> None:
    """In float32, where sums of another order are all that differs: no best logits here are that close."""
    greedy = SamplingParams(max_tokens=16, temperature=0.0, ignore_eos=True)
    requests = [
        EngineRequest(
            request_id=str(i), prompt_token_ids=[(7 * i + 11 * j) % 499 for j in range(n)], params=greedy
        )
        for i, n in enumerate((1, 9, 40, 90))
    ]

    def text(**options: Any) -> dict[Any, list[int]]:
        found = run_together(make(dtype="float32", **options), requests)
        return {key: [token for ids, _ in news for token in ids] for key, news in found.items()}

    want = text(platform="reference", async_scheduling="off")
    for graphs in (False, True):
        assert text(enable_graphs=graphs) == want


@pytest.mark.parametrize("graphs", [False, True])
def test_steady_decoding_asks_for_two_copies(make: Build, monkeypatch: Any, graphs: bool) -> None:
    """Inputs there, tokens back; nothing that waits or allocates."""
    built = make(enable_graphs=graphs)
    params = SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True)
    for name in "ab":
        built.engine.add_request(EngineRequest(request_id=name, prompt_token_ids=[1, 2, 3], params=params))
    for _ in range(6):
        built.engine.step()
    calls: Counter[str] = Counter()

    def count(owner: type, name: str) -> None:
        plain = getattr(owner, name)

        def counted(*args: Any) -> Any:
            calls[name] += 1
            return plain(*args)

        monkeypatch.setattr(owner, name, counted)

    platform = built.session.platform
    for name in ("copy_", "to_host", "from_host", "empty", "synchronize"):
        count(type(platform), name)
    count(type(platform.transfers()), "copy")
    for _ in range(20):
        assert len(built.engine.step()) == 2
    assert calls == {"copy": 40}
    if graphs:
        recorded = built.engine.runner.graphs
        assert recorded is not None
        assert recorded.replays >= 20
