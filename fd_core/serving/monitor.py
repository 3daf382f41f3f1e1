"""Watches the engine: figures for the metrics, and its death or standstill for everybody."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from fd_core.engine.client import EngineClient, EngineDeadError
from fd_core.engine.request import EngineStats
from fd_core.serving.state import ServerState

PERIOD = 0.25


class Monitor:
    """Calls `on_death(why)` once, within about a second of the engine's end."""

    def __init__(
        self, state: ServerState, engine: EngineClient, on_death: Callable[[str], Awaitable[None]]
    ) -> None:
        self._state = state
        self._engine = engine
        self._on_death = on_death
        self._steps = -1
        self._progress = time.monotonic()
        self._answered = time.monotonic()
        self._asking: asyncio.Task[EngineStats] | None = None

    async def run(self) -> None:
        while True:
            started = time.monotonic()
            await asyncio.sleep(PERIOD)
            self._state.metrics.loop_lag.set(max(0.0, time.monotonic() - started - PERIOD))
            if why := await self._look():
                await self._on_death(why)
                return

    async def _look(self) -> str:
        if why := self._engine.healthy():
            return why
        try:
            stats = await self._ask()
        except EngineDeadError as error:
            return str(error)
        return self._judge(stats)

    async def _ask(self) -> EngineStats | None:
        """Figures, or None while the engine has not answered; one question at a time."""
        if self._asking is None:
            self._asking = asyncio.ensure_future(self._engine.stats())
        done, _ = await asyncio.wait({self._asking}, timeout=PERIOD)
        if not done:
            return None
        task, self._asking = self._asking, None
        return task.result()

    def _judge(self, stats: EngineStats | None) -> str:
        """Work present and no step for the stall limit, or no answer for as long: as good as dead."""
        now, limit = time.monotonic(), self._state.config.engine_stall_timeout
        if stats is None:
            return f"the engine has not answered for {limit:g} s" if now - self._answered > limit else ""
        self._answered = now
        self._state.metrics.engine.stats = stats
        busy = self._state.admission.inflight and stats.running + stats.waiting
        if stats.steps != self._steps or not busy:
            self._steps, self._progress = stats.steps, now
        if now - self._progress > limit:
            return f"the engine has work but made no step for {limit:g} s"
        return ""
