"""uvicorn's HTTP protocol with limits while the head of a request is being read."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, ClassVar

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState as UvicornState

from fd_core.serving.errors import RequestError

quiet = logging.getLogger("fd.serving.wire")


def limited(header_bytes: int, header_seconds: float) -> type[asyncio.Protocol]:
    """The protocol class with these bounds."""
    bounds = {"header_bytes": header_bytes, "header_seconds": header_seconds}
    return type("LimitedProtocol", (LimitedProtocol,), bounds)


class LimitedProtocol(HttpToolsProtocol):
    """431 beyond `header_bytes` of a request's head, a closed socket beyond `header_seconds`.

    Refusals before a request exists have the error body too.
    """

    header_bytes: ClassVar[int]
    header_seconds: ClassVar[float]

    def __init__(
        self,
        config: Config,
        server_state: UvicornState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.access_log = False
        self.logger = quiet
        self._in_head = True
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
            self._start_timer()
        super().data_received(data)
        if self._in_head and self._head_bytes > self.header_bytes:
            self._refuse(431, f"the head of the request is larger than {self.header_bytes} bytes")

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes = False, 0
        self._stop_timer()
        if len(self.url) + sum(len(k) + len(v) + 4 for k, v in self.headers) > self.header_bytes:
            self._refuse(431, f"the head of the request is larger than {self.header_bytes} bytes")
            return
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_head = True
        if not self.transport.is_closing():
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "this is not HTTP/1.1")

    def _refuse(self, status: int, message: str) -> None:
        if self.transport.is_closing():
            return
        body = RequestError(message, status=status, code="invalid_request").encoded()
        lines = ["content-type: application/json", f"content-length: {len(body)}", "connection: close"]
        head = STATUS_LINE[status] + "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n"
        self.transport.write(head + body)
        self.transport.close()

    def _start_timer(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.header_seconds, self._head_late)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_late(self) -> None:
        if self._in_head and not self.transport.is_closing():
            self.transport.close()
