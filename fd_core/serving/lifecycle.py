"""From an open port to the exit code: load, serve, drain, die."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Awaitable, Callable

import uvicorn

from fd_core.engine.client import EngineClient
from fd_core.observe.logs import logger
from fd_core.serving.errors import unavailable
from fd_core.serving.http.auth import KeyRing
from fd_core.serving.inputs.text_model import TextModel
from fd_core.serving.monitor import Monitor
from fd_core.serving.parsers import with_parsers
from fd_core.serving.state import Phase, Served, ServerState

Progress = Callable[[str], None]
EngineFactory = Callable[[Progress], Awaitable[EngineClient]]
log = logger("serving")
FLUSH_SECONDS = 2.0  # for error events to reach their clients
CLOSE_SECONDS = 10.0


class Lifecycle:
    """Runs one server to its end. `exit_code` is 0 after a stop, 1 after a failure."""

    def __init__(
        self, state: ServerState, server: uvicorn.Server, keys: KeyRing, factory: EngineFactory
    ) -> None:
        self._state = state
        self._server = server
        self._keys = keys
        self._factory = factory
        self._signals = 0
        self._force = asyncio.Event()
        self._draining: asyncio.Task[None] | None = None
        self._engine: EngineClient | None = None
        self.exit_code = 0

    async def run(self) -> int:
        self._listen()
        work = asyncio.create_task(self._work())
        try:
            await self._server.serve()
        except SystemExit:  # uvicorn's word for a port that cannot be had; it has logged why
            self.exit_code = 1
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            await self._close_engine()
        return self.exit_code

    def _listen(self) -> None:
        """Signals, where we have the main thread; an embedding program sends none."""
        if threading.current_thread() is not threading.main_thread():
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        loop.add_signal_handler(signal.SIGHUP, self._reload)

    def _reload(self) -> None:
        try:
            self._keys.reload()
        except OSError as error:
            log.error("keys were not read again: %s", error)

    async def _work(self) -> None:
        """Load, then watch. Whatever fails here ends the server with a code that is not 0."""
        try:
            served = await self._load()
            state = self._state
            state.served = served
            state.admission.capacity = max(1, served.engine.info.max_num_seqs) + state.config.max_queue
            state.metrics.engine.info = served.engine.info
            state.set_phase(Phase.READY)
            await Monitor(state, served.engine, self.died).run()
        except Exception as error:
            log.exception("the server cannot go on")
            await self.died(f"{type(error).__name__}: {error}")

    async def _load_both(self) -> TextModel:
        """Text side and engine at the same time; the first failure ends the other."""
        config = self._state.config
        reading = asyncio.ensure_future(
            asyncio.to_thread(TextModel.load, config.model_dir, chat_template=config.chat_template)
        )
        starting = asyncio.ensure_future(self._start_engine())
        try:
            await asyncio.gather(reading, starting)
        finally:
            starting.cancel()
        return reading.result()

    async def _start_engine(self) -> None:
        self._engine = await self._factory(self._progress)

    @property
    def _loaded(self) -> EngineClient:
        if self._engine is None:
            raise RuntimeError("the engine factory returned no engine")
        return self._engine

    async def _load(self) -> Served:
        config = self._state.config
        started = time.monotonic()
        text = await self._load_both()
        served = with_parsers(self._loaded, text, config.reasoning_parser, config.tool_call_parser)
        info = served.engine.info
        fields = {"event": "ready", "platform": info.platform, "device": info.device, "dtype": info.dtype}
        seconds = round(time.monotonic() - started, 2)
        log.info("model loaded", extra={**fields, "max_model_len": info.max_model_len, "seconds": seconds})
        return served

    def _progress(self, step: str) -> None:
        """What the loader is doing, for `/health/ready`."""
        self._state.progress["step"] = step

    async def died(self, why: str) -> None:
        """Tell everybody, stay a moment so that probes see it, leave with code 1."""
        if self._state.phase is Phase.DEAD:
            return
        self.exit_code = 1
        log.error("the engine ended: %s", why, extra={"event": "engine_dead"})
        self._state.set_phase(Phase.DEAD, why)
        self._state.fail_all(unavailable(f"the engine ended: {why}", "engine_dead"), "engine_dead")
        await asyncio.sleep(self._state.config.dead_linger)
        self._server.should_exit = True

    def _stop(self, number: int) -> None:
        self._signals += 1
        if self._signals > 1:
            self._force.set()
            return
        delay = self._state.config.drain_seconds if number == signal.SIGTERM else 0.0
        self._draining = asyncio.get_running_loop().create_task(self._drain(delay))

    async def _drain(self, delay: float) -> None:
        """Look busy, refuse, finish, and at the end abort with an error event."""
        state, config = self._state, self._state.config
        if state.phase is Phase.READY:
            state.set_phase(Phase.LEAVING, "stopping")
            await self._until(lambda: False, delay)
        state.set_phase(Phase.DRAINING, "stopping")
        if not await self._until(lambda: not state.admission.inflight, config.shutdown_timeout):
            error = unavailable(
                "the server is stopping and the time for this request is over", "server_draining"
            )
            state.fail_all(error, "shutdown")
            await self._until(lambda: not state.admission.inflight, FLUSH_SECONDS, forced=True)
        self._server.should_exit = True

    async def _until(self, done: Callable[[], bool], seconds: float, forced: bool = False) -> bool:
        """Wait for `done`, for the time, or for the second signal."""
        until = time.monotonic() + seconds
        while not done():
            if time.monotonic() >= until or (self._force.is_set() and not forced):
                return False
            await asyncio.sleep(0.02)
        return True

    async def _close_engine(self) -> None:
        if self._engine is None:
            return
        try:
            await asyncio.wait_for(self._engine.close(), CLOSE_SECONDS)
        except Exception as error:
            log.warning("closing the engine failed: %s: %s", type(error).__name__, error)
