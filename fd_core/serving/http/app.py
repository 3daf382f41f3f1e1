"""The ASGI application: routes, errors for what has no route, keys around everything."""

from __future__ import annotations

from collections import defaultdict

from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route, Router

from fd_core.serving.errors import RequestError
from fd_core.serving.http.auth import Auth, KeyRing
from fd_core.serving.http.call import Call
from fd_core.serving.http.endpoint import Endpoint, Handler
from fd_core.serving.http.routes import ROUTES
from fd_core.serving.http.types import App, Receive, Scope, Send
from fd_core.serving.state import ServerState


def build_app(state: ServerState, keys: KeyRing) -> App:
    by_path: dict[str, dict[str, Handler]] = defaultdict(dict)
    for method, path, handler in ROUTES:
        by_path[path][method] = handler
    router = Router(
        [Route(path, ByMethod(state, path, handlers)) for path, handlers in by_path.items()],
        redirect_slashes=False,
        default=Endpoint(state, "none", _no_route),
    )
    app: App = Auth(_http_only(router), keys)
    if state.config.allowed_origins:
        app = CORSMiddleware(
            app,
            allow_origins=state.config.allowed_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "x-request-id", "x-request-timeout"],
            expose_headers=["x-request-id"],
        )
    return app


class ByMethod:
    """One path: its handler by method, or a 405 that lists them."""

    def __init__(self, state: ServerState, path: str, handlers: dict[str, Handler]) -> None:
        self._endpoints = {m: Endpoint(state, path, h) for m, h in handlers.items()}
        if "GET" in self._endpoints:
            self._endpoints["HEAD"] = self._endpoints["GET"]
        self._refusal = Endpoint(state, path, _wrong_method(", ".join(sorted(self._endpoints))))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._endpoints.get(scope["method"], self._refusal)(scope, receive, send)


def _wrong_method(allowed: str) -> Handler:
    async def refuse(state: ServerState, call: Call) -> None:
        raise RequestError(
            f"{call.scope['path'][:100]}: want method {allowed}, found {call.scope['method'][:20]}",
            status=405,
            code="method_not_allowed",
            headers={"Allow": allowed},
        )

    return refuse


async def _no_route(state: ServerState, call: Call) -> None:
    raise RequestError(f"no such route: {call.scope['path'][:100]}", status=404, code="not_found")


def _http_only(router: Router) -> App:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await router(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})

    return app
