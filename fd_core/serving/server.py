"""The entry: `serve(config, engine_factory)` runs a server and returns its exit code."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from fd_core.observe.logs import logger
from fd_core.observe.metrics import Metrics
from fd_core.serving.admission import Admission
from fd_core.serving.config import ServeConfig
from fd_core.serving.http.app import build_app
from fd_core.serving.http.auth import KeyRing, key_ring
from fd_core.serving.http.types import App
from fd_core.serving.http.wire import limited
from fd_core.serving.lifecycle import EngineFactory, Lifecycle
from fd_core.serving.state import ServerState

log = logger("serving")


class Server(uvicorn.Server):
    """Signals are the lifecycle's; where it listens is told once it is known."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        await super().startup()
        if self.config.uds is not None:
            os.chmod(self.config.uds, 0o600)  # uvicorn opens it to every user of the machine
            log.info("listening on unix socket %s", self.config.uds, extra={"event": "listening"})
        elif self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            scheme = "https" if self.config.is_ssl else "http"
            log.info(
                "listening on %s://%s:%d", scheme, host, port, extra={"event": "listening", "port": port}
            )

    async def shutdown(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        await super().shutdown()
        if self.config.uds is not None:
            Path(self.config.uds).unlink(missing_ok=True)


def new_state(config: ServeConfig) -> ServerState:
    metrics = Metrics(config.model_name, compat=config.metrics_compat)
    return ServerState(config, metrics, Admission(1 + config.max_queue))


def uvicorn_server(config: ServeConfig, app: App) -> Server:
    return Server(
        uvicorn.Config(
            app,
            host=config.host,
            port=config.port,
            uds=config.uds,
            loop="none",
            http=limited(config.max_header_bytes, config.header_timeout),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            root_path=config.root_path,
            ssl_keyfile=config.ssl_keyfile,
            ssl_certfile=config.ssl_certfile,
            ssl_ca_certs=config.ssl_ca_certs,
            timeout_keep_alive=65,
            timeout_graceful_shutdown=3,
        )
    )


async def serve_async(config: ServeConfig, engine_factory: EngineFactory, keys: KeyRing) -> int:
    """As `serve`, inside a running event loop."""
    state = new_state(config)
    server = uvicorn_server(config, build_app(state, keys))
    return await Lifecycle(state, server, keys, engine_factory).run()


def serve(config: ServeConfig, engine_factory: EngineFactory) -> int:
    """Serve until told to stop. The port opens at once; `engine_factory(progress)` loads meanwhile.

    Returns 0 after SIGTERM or SIGINT, 1 when the engine failed. Raises FdError for a public address
    without keys or a key file that cannot be read.
    """
    keys = key_ring(config)
    config.check_exposure(bool(keys))
    main = serve_async(config, engine_factory, keys)
    if os.name == "posix":
        import uvloop

        return uvloop.run(main)
    return asyncio.run(main)
