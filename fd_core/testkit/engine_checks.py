"""Engine-level conformance: queued copies, and steps that are planned while the one before runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fd_core.api.dtype import int32
from fd_core.api.tensor import TensorSpec
from fd_core.engine.build import assemble, build_model, plan_memory
from fd_core.engine.config import EngineConfig
from fd_core.engine.engine import Engine
from fd_core.engine.request import EngineRequest, SamplingParams
from fd_core.testkit.trial import CheckFailed

if TYPE_CHECKING:
    from fd_core.host.session import Session

#: Completions of one length each, so that a step holds the same rows however it is scheduled.
WISHES = (
    SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True),
    SamplingParams(max_tokens=9, temperature=0.9, top_p=0.9, seed=1, ignore_eos=True),
    SamplingParams(max_tokens=7, temperature=0.0, repetition_penalty=1.3, ignore_eos=True),
    SamplingParams(max_tokens=10, temperature=1.0, top_k=20, seed=2, n=2, ignore_eos=True),
)
Tokens = dict[tuple[str, int], list[int]]


def queued_copies(session: Session, folder: Path) -> None:
    """Copies to the device and back in the order of their calls, complete when an event has passed."""
    transfers = session.platform.transfers()
    spec = TensorSpec((1 << 16,), int32)
    there, first, second, back = session.platform.empty(spec), *(transfers.pinned(spec) for _ in range(3))
    first.numpy()[...], second.numpy()[...], back.numpy()[...] = 1, 2, 3
    event = transfers.event()
    event.wait()
    transfers.copy(there, first)
    transfers.copy(there, second)
    transfers.copy(back, there)
    event.record()
    event.wait()
    if not (back.numpy() == 2).all():
        raise CheckFailed(f"want the copy that was queued last, have {np.unique(back.numpy()).tolist()}")


def looking_ahead(session: Session, folder: Path) -> None:
    """Steps planned while the one before runs, recorded or not, give the tokens of one step at a time."""
    want = _tokens(session, folder, "off", False)
    for graphs in (False, True):
        have = _tokens(session, folder, "on", graphs)
        wrong = sorted(key for key in want if have[key] != want[key])
        if wrong:
            kind = "recorded" if graphs else "eager"
            raise CheckFailed(f"{kind} steps: completions {wrong} differ from those of one step at a time")


Check = Callable[["Session", Path], None]
CHECKS: dict[str, Check] = {check.__name__: check for check in (queued_copies, looking_ahead)}


def engine_findings(session: Session, folder: Path) -> Iterator[tuple[str, Exception | None]]:
    """Each check's name, and what went wrong."""
    for name, check in CHECKS.items():
        try:
            check(session, folder)
        except Exception as error:
            yield name, error
        else:
            yield name, None


def _tokens(session: Session, folder: Path, ahead: str, graphs: bool) -> Tokens:
    engine = _engine(session, folder, ahead, graphs)
    for i, params in enumerate(WISHES):
        prompt = [(3 + 7 * i + 5 * j) % 131 for j in range(1 + 20 * i)]
        engine.add_request(EngineRequest(request_id=str(i), prompt_token_ids=prompt, params=params))
    found: Tokens = {}
    while engine.has_work:
        for output in engine.step():
            if output.error:
                raise CheckFailed(output.error)
            found.setdefault((output.request_id, output.index), []).extend(output.token_ids)
    return found


def _engine(session: Session, folder: Path, ahead: str, graphs: bool) -> Engine:
    config = EngineConfig(
        model=str(folder),
        load_format="dummy",
        block_size=8,
        max_num_seqs=8,
        max_num_batched_tokens=32,
        enable_graphs=graphs,
        async_scheduling=ahead,
    )
    model = build_model(config, session)
    return assemble(config, session, model, *plan_memory(config, session, model))
