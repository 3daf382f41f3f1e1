"""An engine in a process of its own, seen from an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable

import zmq
import zmq.asyncio

from fd_core.engine.client import EngineClient, EngineDeadError
from fd_core.engine.config import EngineConfig
from fd_core.engine.messages import (
    Abort,
    Add,
    Failed,
    FromEngine,
    News,
    Progress,
    Ready,
    Start,
    Stop,
    ToEngine,
    decode_from_engine,
    encode,
)
from fd_core.engine.request import EngineOutput, EngineRequest, EngineStats

log = logging.getLogger("fd.engine.client")

Queue = asyncio.Queue[EngineOutput | EngineDeadError]

#: Seconds without a sign of life after which the engine counts as stalled.
STALL_SECONDS = 10.0
_POLL_SECONDS = 0.2


class ProcessEngine(EngineClient):
    """Starts the engine's process; `start` returns when the model is ready.

    The process' death and its silence are noticed within `_POLL_SECONDS` and `stall_seconds`: every
    waiting request gets EngineDeadError, and `healthy` says what happened from then on.
    """

    def __init__(self, config: EngineConfig, *, stall_seconds: float = STALL_SECONDS) -> None:
        config.check()
        self.config = config
        self.stall_seconds = stall_seconds
        self._queues: dict[str, Queue] = {}
        self._dead = ""
        self._stats = EngineStats()
        self._last_beat = time.monotonic()
        self._ready: asyncio.Future[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._progress: Callable[[str], None] = lambda text: None

    async def start(self, progress: Callable[[str], None] | None = None) -> None:
        """Launch and load. Raises EngineDeadError with the engine's own words when it cannot start."""
        self._progress = progress or self._progress
        self._folder = tempfile.mkdtemp(prefix="fd-engine-")  # mode 0700
        address = f"ipc://{self._folder}"
        self._context = zmq.asyncio.Context()
        self._socket = self._bind(zmq.PAIR, f"{address}/engine")
        self._beats = self._bind(zmq.PULL, f"{address}/beat")
        command = [sys.executable, "-m", "fd_core.engine.process", address]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        self._ready = asyncio.get_running_loop().create_future()
        self._tasks = [asyncio.create_task(job) for job in (self._read(), self._listen(), self._watch())]
        await self._send(Start(self.config))
        await self._ready

    def _bind(self, kind: int, address: str) -> zmq.asyncio.Socket:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.bind(address)
        return socket

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    def generate(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        return self._generate(request)

    async def _generate(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        if self._dead:
            raise EngineDeadError(self._dead)
        queue: Queue = asyncio.Queue()
        self._queues[request.request_id] = queue
        unfinished = request.params.n
        try:
            await self._send(Add(request))
            while unfinished:
                output = await queue.get()
                if isinstance(output, EngineDeadError):
                    raise output
                unfinished = 0 if output.refused else unfinished - (output.finish_reason is not None)
                yield output
        finally:
            self._queues.pop(request.request_id, None)
            if unfinished and not self._dead:
                await self.abort(request.request_id)

    async def abort(self, request_id: str, index: int | None = None) -> None:
        if not self._dead:
            await self._send(Abort(request_id, index))

    async def stats(self) -> EngineStats:
        if self._dead:
            raise EngineDeadError(self._dead)
        return self._stats

    def healthy(self) -> str:
        return self._dead

    async def close(self) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        if not self._dead:  # a socket without a peer would wait for one
            self._dead = "the engine was stopped"
            with contextlib.suppress(zmq.ZMQError, asyncio.TimeoutError):
                await asyncio.wait_for(self._send(Stop()), 1)
        await asyncio.to_thread(_end, process)
        for task in self._tasks:
            task.cancel()
        self._fail_waiting()
        self._socket.close(linger=0)
        self._beats.close(linger=0)
        self._context.term()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _send(self, message: ToEngine) -> None:
        await self._socket.send(encode(message))

    async def _read(self) -> None:
        while True:
            self._handle(decode_from_engine(await self._socket.recv()))

    async def _listen(self) -> None:
        while True:
            await self._beats.recv()
            self._last_beat = time.monotonic()

    def _handle(self, message: FromEngine) -> None:
        if isinstance(message, News):
            self._stats = message.stats
            for output in message.outputs:
                if queue := self._queues.get(output.request_id):
                    queue.put_nowait(output)
        elif isinstance(message, Progress):
            self._progress(message.text)
        elif isinstance(message, Ready):
            self.info = message.info
            self._settle(None)
        elif isinstance(message, Failed):
            self._die(message.text)

    async def _watch(self) -> None:
        while not self._dead:
            await asyncio.sleep(_POLL_SECONDS)
            process = self._process
            if process is None:
                return
            code = process.poll()
            if code is not None:
                await asyncio.sleep(0.05)  # its last words may still be in the socket
                self._die(f"the engine process (pid {process.pid}) ended with status {code}")
            elif self._is_ready and time.monotonic() - self._last_beat > self.stall_seconds:
                self._die(
                    f"the engine process (pid {process.pid}) gave no sign of life for "
                    f"{self.stall_seconds} s"
                )

    @property
    def _is_ready(self) -> bool:
        return self._ready is not None and self._ready.done()

    def _die(self, why: str) -> None:
        if self._dead:
            return
        self._dead = why
        log.error("engine dead: %s", why)
        self._settle(EngineDeadError(why))
        self._fail_waiting()

    def _settle(self, error: EngineDeadError | None) -> None:
        if self._ready is None or self._ready.done():
            return
        if error is None:
            self._ready.set_result(None)
        else:
            self._ready.set_exception(error)

    def _fail_waiting(self) -> None:
        for queue in self._queues.values():
            queue.put_nowait(EngineDeadError(self._dead))


def _end(process: subprocess.Popen[bytes], patience: float = 5.0) -> None:
    """Wait for a process that was told to stop; kill it when it does not listen."""
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, 9)
        process.wait()
    finally:
        if process.stdin:
            process.stdin.close()
