"""One HTTP exchange: its id, its body, its answer."""

from __future__ import annotations

import asyncio
import math
import re
import secrets
import time
from typing import Any, TypeVar

import msgspec

from fd_core.serving.config import ServeConfig
from fd_core.serving.errors import RequestError
from fd_core.serving.http.body import decode, read_body
from fd_core.serving.http.types import Receive, Scope, Send

T = TypeVar("T")
GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")
JSON = b"application/json"
ENCODER = msgspec.json.Encoder()
DISCARD_SECONDS = 1.0


class Call:
    """Reads and answers once. `fields` are added to the request's log line."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.receive = receive
        self._send = send
        self.headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        given = self.headers.get("x-request-id", "")
        self.request_id = given if GIVEN_ID.match(given) else secrets.token_hex(12)
        self.arrival = time.time()
        self.status = 0
        self.unknown_fields = 0
        self.fields: dict[str, Any] = {}

    @property
    def started(self) -> bool:
        """Whether a status went out; then errors are events."""
        return self.status != 0

    def engine_id(self, kind: str) -> str:
        """Ours plus a random end: two clients may send the same X-Request-Id."""
        return f"{kind}-{self.request_id}-{secrets.token_hex(4)}"

    async def json(self, kind: type[T], config: ServeConfig) -> T:
        """The body as `kind`."""
        body = await read_body(self.scope, self.receive, config)
        found, self.unknown_fields = await decode(body, kind, config)
        return found

    def deadline(self, config: ServeConfig) -> float | None:
        """When the request's time is over: the server's limit or the client's shorter wish."""
        limits = [config.request_timeout] if config.request_timeout > 0 else []
        if (given := self.headers.get("x-request-timeout")) is not None:
            limits.append(_seconds(given))
        return time.monotonic() + min(limits) if limits else None

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.status = status
        headers = [*headers, (b"x-request-id", self.request_id.encode())]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def respond(
        self,
        body: bytes,
        status: int = 200,
        kind: bytes = JSON,
        headers: list[tuple[bytes, bytes]] | None = None,
    ) -> None:
        size = str(len(body)).encode()
        await self._start(status, [(b"content-type", kind), (b"content-length", size), *(headers or [])])
        await self._send({"type": "http.response.body", "body": body})

    async def reply(self, value: Any, status: int = 200) -> None:
        """A structure as JSON."""
        await self.respond(ENCODER.encode(value), status)

    async def refuse(self, error: RequestError) -> None:
        """An error answer, or after a stream began an error event and the end without `[DONE]`."""
        if self.started:
            await self.event(error.encoded())
            await self.end()
            return
        headers = [(k.lower().encode(), v.encode()) for k, v in error.headers.items()]
        body = error.encoded()
        if error.status == 413:
            return await self._refuse_upload(body, headers)
        await self.respond(body, error.status, headers=headers)

    async def _refuse_upload(self, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        """Answer, then swallow a little of what is still coming so that the client reads the answer."""
        size = str(len(body)).encode()
        extra = [(b"content-type", JSON), (b"content-length", size), (b"connection", b"close")]
        await self._start(413, [*extra, *headers])
        await self._send({"type": "http.response.body", "body": body, "more_body": True})
        until = time.monotonic() + DISCARD_SECONDS
        while (left := until - time.monotonic()) > 0:
            try:
                message = await asyncio.wait_for(self.receive(), left)
            except asyncio.TimeoutError:
                break
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                break
        await self._send({"type": "http.response.body", "body": b""})

    async def begin_stream(self) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        await self._start(200, headers)

    async def event(self, data: bytes) -> None:
        await self._send(
            {"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": True}
        )

    async def comment(self) -> None:
        await self._send({"type": "http.response.body", "body": b": waiting\n\n", "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})


def _seconds(given: str) -> float:
    try:
        found = float(given)
    except ValueError:
        found = math.nan
    if not 0 < found <= 86400:
        raise RequestError(
            f"X-Request-Timeout: want seconds within 0..86400, found {given[:40]!r}",
            param="X-Request-Timeout",
        )
    return found
