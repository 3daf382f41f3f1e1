"""All engine requests of one client request, as one stream of text deltas."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from fd_core.engine.client import EngineClient, EngineDeadError
from fd_core.engine.request import EngineOutput, EngineRequest, FinishReason
from fd_core.observe.metrics import Metrics, RequestMeter
from fd_core.serving.errors import RequestError, unavailable
from fd_core.serving.inputs.tokenizer import TextTokenizer
from fd_core.serving.outputs import OutputProcessor, TextDelta

News = tuple[int, TextDelta]


class ClientGoneError(Exception):
    """The client closed its connection; nobody is there to be answered."""


class Generation:
    """Pumps the engine's outputs of every prompt into one queue. Use as an async context manager.

    Leaving the context stops what still runs. `deadline` is a `time.monotonic()` second or None.
    """

    def __init__(
        self,
        engine: EngineClient,
        tokenizer: TextTokenizer,
        requests: Sequence[EngineRequest],
        metrics: Metrics,
        deadline: float | None = None,
    ) -> None:
        self.requests = requests
        self.processors = [OutputProcessor(r, tokenizer) for r in requests]
        self.meters: list[RequestMeter] = []
        self.end_reason = "unfinished"
        self._engine = engine
        self._metrics = metrics
        self._deadline = deadline
        self._queue: asyncio.Queue[News | Exception] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self._begun = False

    async def __aenter__(self) -> Generation:
        for at, request in enumerate(self.requests):
            params, size = request.params, len(request.prompt_token_ids)
            meter = RequestMeter(
                self._metrics, request.arrival_time, size, params.max_tokens or 0, params.n
            )
            self.meters.append(meter)
            self._tasks.append(asyncio.create_task(self._pump(at, request, meter)))
        return self

    async def __aexit__(self, *exc: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._count_unfinished()

    def _count_unfinished(self) -> None:
        """Ledger: accepted = finished + aborted + live."""
        if self.end_reason == "refused":
            return
        for processor, meter in zip(self.processors, self.meters, strict=True):
            if not processor.done:
                meter.accepted()
                self._metrics.aborted.labels(self.end_reason).inc()

    async def _pump(self, at: int, request: EngineRequest, meter: RequestMeter) -> None:
        try:
            await self._read(at, request, meter)
        except EngineDeadError as error:
            self.fail(unavailable(f"the engine ended: {error}", "engine_dead"), "engine_dead")
        except RequestError as error:
            self.fail(error, "refused" if error.status == 400 else "engine_error")
        except Exception as error:
            self.end_reason = "internal_error"
            self._queue.put_nowait(error)

    async def _read(self, at: int, request: EngineRequest, meter: RequestMeter) -> None:
        processor = self.processors[at]
        outputs: Any = self._engine.generate(request)
        async with aclosing(outputs):
            async for output in outputs:
                _check(output)
                meter.accepted()
                delta = processor.process(output)
                if delta is not None:
                    self._tell(at, delta, output, meter)
                if processor.done:
                    break
                if delta is not None and delta.finish_reason and output.finish_reason is None:
                    await self._engine.abort(request.request_id, output.index)  # a stop string
        if not processor.done:
            raise RequestError(
                "the engine ended a request without saying why", status=500, code="engine_error"
            )
        meter.finished()

    def _tell(self, at: int, delta: TextDelta, output: EngineOutput, meter: RequestMeter) -> None:
        meter.tokens(delta.index, len(delta.token_ids), output.queue_time)
        if delta.finish_reason is not None:
            meter.completed(delta.finish_reason)
        self._queue.put_nowait((at, delta))

    def fail(self, error: Exception, reason: str) -> None:
        """End this generation: its reader gets `error`."""
        if self.end_reason == "unfinished":
            self.end_reason = reason
        self._queue.put_nowait(error)

    async def next(self, patience: float | None = None) -> News | None:
        """The next news; None after `patience` seconds without any. Raises what ended the request."""
        left = None if self._deadline is None else self._deadline - time.monotonic()
        wait = min((t for t in (left, patience) if t is not None), default=None)
        try:
            found = (
                await asyncio.wait_for(self._queue.get(), wait)
                if self._queue.empty()
                else self._queue.get_nowait()
            )
        except asyncio.TimeoutError:
            if self._deadline is not None and time.monotonic() >= self._deadline:
                raise self._timeout() from None
            return None
        if isinstance(found, Exception):
            raise found
        self._begun = True
        return found

    def _timeout(self) -> RequestError:
        """503 while nothing came yet (the queue was too long), 408 once it was being served."""
        self.end_reason = "timeout"
        if not self._begun:
            return unavailable(
                "the request's time was over before the engine began with it", "request_timeout"
            )
        return RequestError("the request's time is over", status=408, code="request_timeout")

    async def __aiter__(self) -> AsyncIterator[News]:
        open_choices = sum(r.params.n for r in self.requests)
        while open_choices:
            news = await self.next()
            if news is not None:
                open_choices -= news[1].finish_reason is not None
                yield news

    @property
    def prompt_tokens(self) -> int:
        return sum(p.num_prompt_tokens for p in self.processors)

    @property
    def completion_tokens(self) -> int:
        return sum(p.num_output_tokens for p in self.processors)

    @property
    def cached_tokens(self) -> int:
        return sum(p.num_cached_tokens for p in self.processors)

    @property
    def num_choices(self) -> int:
        return sum(r.params.n for r in self.requests)


def _check(output: EngineOutput) -> None:
    """Refusals and failures of the engine are errors, never an answer that looks complete."""
    if output.refused:
        raise RequestError(output.error or "the engine refused the request", code="request_refused")
    if output.finish_reason is FinishReason.ERROR:
        raise RequestError(output.error or "the engine failed", status=500, code="engine_error")
    if output.finish_reason is FinishReason.ABORT:
        raise unavailable("the request was stopped by the server", "request_aborted")
