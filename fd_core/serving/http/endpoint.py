"""What every route does around its handler: errors, log line, metrics, nothing left running."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from fd_core.engine.client import EngineDeadError
from fd_core.observe.context import request_id
from fd_core.observe.logs import logger
from fd_core.serving.errors import RequestError, unavailable
from fd_core.serving.generation import ClientGoneError
from fd_core.serving.http.call import Call
from fd_core.serving.http.types import Receive, Scope, Send
from fd_core.serving.state import ServerState

Handler = Callable[[ServerState, Call], Awaitable[None]]
log = logger("serving.request")
QUIET = ("/health", "/metrics", "/ping", "/load")  # probes: no line each
GONE = 499


class Endpoint:
    """One route as an ASGI application."""

    def __init__(self, state: ServerState, route: str, handler: Handler) -> None:
        self._state = state
        self._route = route
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = Call(scope, receive, send)
        token = request_id.set(call.request_id)
        try:
            await self._answer(call)
        finally:
            self._record(call)
            request_id.reset(token)

    async def _answer(self, call: Call) -> None:
        try:
            await self._handler(self._state, call)
        except ClientGoneError:
            call.fields["reason"] = "client_gone"
            call.status = GONE
        except RequestError as error:
            await self._refuse(call, error)
        except EngineDeadError as error:
            await self._refuse(call, unavailable(f"the engine ended: {error}", "engine_dead"))
        except Exception:
            log.exception("request failed", extra={"event": "request_failed", "route": self._route})
            message = f"internal error; the server's log has it under request id {call.request_id}"
            await self._refuse(call, RequestError(message, status=500, code="internal_error"))

    async def _refuse(self, call: Call, error: RequestError) -> None:
        call.fields.update(reason=error.code, error=error.message[:200])
        if not call.started:
            self._state.metrics.rejected.labels(error.code).inc()
        await call.refuse(error)

    def _record(self, call: Call) -> None:
        self._state.metrics.http.labels(self._route, str(call.status or GONE)).inc()
        if call.unknown_fields:
            self._state.metrics.unknown_fields.inc(call.unknown_fields)
        if not self._state.config.log_requests or self._route.startswith(QUIET):
            return
        seconds = round(time.time() - call.arrival, 4)
        fields = {"event": "request", "route": self._route, "status": call.status, "seconds": seconds}
        log.info("request finished", extra={**fields, "reason": "ok", **call.fields})
