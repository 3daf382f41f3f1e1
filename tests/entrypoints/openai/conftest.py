"""A real server on 127.0.0.1 around the echo engine, in a thread of this process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest

from fd_core.serving.config import ServeConfig
from fd_core.serving.http.app import build_app
from fd_core.serving.http.auth import key_ring
from fd_core.serving.lifecycle import Lifecycle
from fd_core.serving.server import new_state, uvicorn_server
from fd_core.testkit.echo import EchoEngine
from fd_core.testkit.toy_text import write_model_folder


@dataclass
class Running:
    """Handles of a running server. `on_loop` runs a function inside its event loop."""

    url: str
    port: int
    state: object
    engine: EchoEngine
    loop: asyncio.AbstractEventLoop
    lifecycle: Lifecycle

    def on_loop(self, function, *args):
        done = threading.Event()
        box = []

        def call():
            box.append(function(*args))
            done.set()

        self.loop.call_soon_threadsafe(call)
        assert done.wait(10)
        return box[0]

    def settled(self, seconds: float = 3.0) -> bool:
        """Wait until the engine holds nothing."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if not self.engine.live and not self.state.admission.inflight:
                return True
            time.sleep(0.01)
        return False

    def client(self, **options) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="k", max_retries=0, timeout=30, **options)

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30)


@contextlib.contextmanager
def running(folder: Path, engine_options=None, environ=None, **config):
    """Start a server with these settings; stop it and check that it ends."""
    options = {"step_time": 0.001, **(engine_options or {})}
    made = ServeConfig(
        model_dir=folder, **{"served_model_names": ("toy",), "port": 0, "log_requests": False, **config}
    )
    keys = key_ring(made, environ or {})
    state = new_state(made)
    server = uvicorn_server(made, build_app(state, keys))
    ready = threading.Event()
    box = {}

    async def factory(progress):
        box["engine"] = EchoEngine(**options)
        return box["engine"]

    async def main():
        box["loop"] = asyncio.get_running_loop()
        box["lifecycle"] = Lifecycle(state, server, keys, factory)
        ready.set()
        return await box["lifecycle"].run()

    def body():
        import uvloop

        loop = uvloop.new_event_loop()
        asyncio.set_event_loop(loop)
        box["code"] = loop.run_until_complete(main())
        loop.close()

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    assert ready.wait(10)
    until = time.monotonic() + 10
    while state.served is None or not server.started:
        assert time.monotonic() < until, "the server did not start"
        time.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Running(f"http://127.0.0.1:{port}", port, state, box["engine"], box["loop"], box["lifecycle"])
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive(), "the server did not stop"


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("model") / "toy")


@pytest.fixture(scope="module")
def server(folder):
    """One server a module; tests leave it idle."""
    with running(folder) as handle:
        yield handle
        assert handle.settled(), "the engine still holds requests"


def starter(folder):
    """A function that starts servers with other settings; stopped when the fixture ends."""
    with contextlib.ExitStack() as stack:
        yield lambda engine_options=None, environ=None, **config: stack.enter_context(
            running(folder, engine_options, environ, **config)
        )


@pytest.fixture
def start(folder):
    yield from starter(folder)


@pytest.fixture(scope="module")
def start_for_module(folder):
    yield from starter(folder)


@pytest.fixture
def client(server):
    with server.client() as made:
        yield made


def read_events(lines) -> list[object]:
    """Data of an event stream: parsed JSON, or the text `[DONE]`."""
    found = [line[6:] for line in lines if line.startswith("data: ")]
    return [text if text == "[DONE]" else json.loads(text) for text in found]


@pytest.fixture
def events():
    return read_events
