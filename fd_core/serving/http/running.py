"""A generation tied to its client: it ends when the client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fd_core.engine.request import EngineRequest
from fd_core.serving.generation import ClientGoneError, Generation
from fd_core.serving.http.call import Call
from fd_core.serving.state import Served, ServerState


@asynccontextmanager
async def running(
    state: ServerState,
    served: Served,
    call: Call,
    requests: Sequence[EngineRequest],
    deadline: float | None,
) -> AsyncIterator[Generation]:
    """Run `requests`; stopped when the block ends, the client goes, or the server says so."""
    if state.failure is not None:
        raise state.failure
    generation = Generation(served.engine, served.text.tokenizer, requests, state.metrics, deadline)
    state.generations.add(generation)
    watcher = asyncio.create_task(_watch(call, generation))
    try:
        async with generation:
            yield generation
    finally:
        watcher.cancel()
        state.generations.discard(generation)
        call.fields.update(summary(generation))


async def _watch(call: Call, generation: Generation) -> None:
    """The body was read, so the next message can only be the disconnect."""
    while (await call.receive())["type"] != "http.disconnect":
        pass
    generation.fail(ClientGoneError(), "client_gone")


def summary(generation: Generation) -> dict[str, object]:
    """Fields of the request's log line; never its text."""
    first = generation.meters[0].ttft if generation.meters else 0.0
    return {
        "prompt_tokens": generation.prompt_tokens,
        "completion_tokens": generation.completion_tokens,
        "ttft": round(first, 4),
    }
