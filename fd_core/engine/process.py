"""The engine's own process: `python -m fd_core.engine.process ADDRESS`.

ADDRESS is `ipc://` and a directory only its owner may enter; it holds a PAIR socket for messages and
a PUSH socket for signs of life. The process ends when told to, when its
parent is gone (standard input closes), or when it cannot start.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
import threading
import time

import zmq

from fd_core.engine.engine import Engine, RequestRefusedError
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
    decode_to_engine,
    encode,
)
from fd_core.engine.request import EngineOutput, FinishReason

log = logging.getLogger("fd.engine")

#: Seconds between signs of life while there is nothing to do.
BEAT_SECONDS = 0.5


class EngineLoop:
    """Receive, step, send, until told to stop."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self.socket = socket
        self.engine: Engine | None = None
        self.stopping = False
        self._last_sent = 0.0

    def run(self) -> int:
        """Returns the exit status."""
        start = decode_to_engine(self.socket.recv())
        if not isinstance(start, Start):
            raise RuntimeError(f"first message: want Start, have {type(start).__name__}")
        try:
            self._open(start)
        except Exception as error:
            log.exception("the engine cannot start")
            self._send(Failed(f"{type(error).__name__}: {error}"))
            return 1
        while not self.stopping:
            self._turn()
        return 0

    def _open(self, start: Start) -> None:
        from fd_core.engine.build import build_engine

        built = build_engine(start.config, progress=lambda text: self._send(Progress(text)))
        self.engine = built.engine
        gc.collect()
        gc.freeze()  # what lives as long as the process is not walked again between steps
        self._send(Ready(built.info))

    def _turn(self) -> None:
        engine = self._engine
        outputs = self._receive(wait=not engine.has_work)
        if engine.has_work:
            outputs += engine.step()
        if outputs or time.monotonic() - self._last_sent >= BEAT_SECONDS:
            self._last_sent = time.monotonic()
            self._send(News(outputs, engine.stats()))

    @property
    def _engine(self) -> Engine:
        assert self.engine is not None
        return self.engine

    def _receive(self, *, wait: bool) -> list[EngineOutput]:
        """Handle everything that has arrived; with `wait`, for at most one beat until something has."""
        refusals: list[EngineOutput] = []
        timeout = int(BEAT_SECONDS * 1000) if wait else 0
        while self.socket.poll(timeout):
            refusals += self._handle(decode_to_engine(self.socket.recv()))
            timeout = 0
        return refusals

    def _handle(self, message: ToEngine) -> list[EngineOutput]:
        if isinstance(message, Add):
            return self._add(message)
        if isinstance(message, Abort):
            self._engine.abort(message.request_id, message.index)
        elif isinstance(message, Stop):
            self.stopping = True
        return []

    def _add(self, message: Add) -> list[EngineOutput]:
        try:
            self._engine.add_request(message.request)
        except RequestRefusedError as error:
            refusal = EngineOutput(
                request_id=message.request.request_id,
                finish_reason=FinishReason.ERROR,
                error=str(error),
                refused=True,
            )
            return [refusal]
        return []

    def _send(self, message: FromEngine) -> None:
        self.socket.send(encode(message))


def _end_with_parent() -> None:
    """Exit when the parent's end of standard input closes, even in the middle of a step."""
    while os.read(0, 4096):  # not through sys.stdin: its lock would be held at interpreter exit
        continue
    os._exit(3)


def _beat(context: zmq.Context[zmq.Socket[bytes]], address: str) -> None:
    """A sign of life from a thread of its own: a long step is not a stall, a frozen process is."""
    socket = context.socket(zmq.PUSH)
    socket.setsockopt(zmq.SNDHWM, 4)
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(address)
    with contextlib.suppress(zmq.ContextTerminated):
        while True:
            with contextlib.suppress(zmq.Again):
                socket.send(b"", zmq.NOBLOCK)
            time.sleep(BEAT_SECONDS)
    socket.close()


def main(address: str) -> int:
    from fd_core.observe.logs import configure

    configure()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    context = zmq.Context()
    socket = context.socket(zmq.PAIR)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.connect(f"{address}/engine")
    threading.Thread(target=_beat, args=(context, f"{address}/beat"), daemon=True).start()
    try:
        return EngineLoop(socket).run()
    finally:
        socket.close(linger=2000)
        context.term()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
