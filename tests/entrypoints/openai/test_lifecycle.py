"""Start, drain, death and exit codes of a server process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

import fd_core

ROOT = Path(fd_core.__file__).parents[1]
PROGRAM = Path(__file__).with_name("echo_server.py")


class Process:
    """A server process with its log lines."""

    def __init__(self, folder, config, options):
        arguments = [json.dumps({"port": 0, **config}), json.dumps({"step_time": 0.01, **options})]
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.popen = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(folder), *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        self.log: list[dict] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.popen.stderr:
            self.log.append(json.loads(line) if line.startswith("{") else {"raw": line})

    def event(self, name, seconds=15.0):
        """The first log line with this event."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            found = next((e for e in self.log if e.get("event") == name), None)
            if found:
                return found
            if self.popen.poll() is not None and not self._reader.is_alive():
                break
            time.sleep(0.01)
        raise AssertionError(f"no event {name!r} in {self.log}")

    @property
    def url(self):
        return f"http://127.0.0.1:{self.event('listening')['port']}"

    def ready(self):
        self.event("ready")
        with httpx.Client(base_url=self.url) as http:
            until = time.monotonic() + 5
            while http.get("/health/ready").status_code != 200:
                assert time.monotonic() < until
                time.sleep(0.01)
        return self

    def wait(self, seconds=15.0) -> int:
        code = self.popen.wait(seconds)
        self._reader.join(5)
        return code


@pytest.fixture
def launch(folder):
    made = []

    def start(options=None, **config):
        made.append(Process(folder, config, options or {}))
        return made[-1]

    yield start
    for process in made:
        if process.popen.poll() is None:
            process.popen.kill()
            process.popen.wait(10)


class Stream(threading.Thread):
    """A client that reads one stream to its end."""

    def __init__(self, url, tokens):
        super().__init__(daemon=True)
        self.url, self.tokens = url, tokens
        self.text = ""
        self.first = threading.Event()
        self.ended = 0.0
        self.start()

    def run(self):
        body = {"prompt": "stream", "max_tokens": self.tokens, "stream": True}
        with (
            httpx.Client(timeout=30) as http,
            http.stream("POST", f"{self.url}/v1/completions", json=body) as a,
        ):
            for part in a.iter_text():
                self.text += part
                self.first.set()
        self.ended = time.monotonic()

    def events(self):
        self.join(20)
        assert not self.is_alive()
        found = [part[6:] for part in self.text.split("\n\n") if part.startswith("data: ")]
        return [e if e == "[DONE]" else json.loads(e) for e in found]


def test_port_opens_while_loading(launch):
    process = launch({"load_seconds": 1.5})
    with httpx.Client(base_url=process.url) as http:
        assert http.get("/health/live").status_code == 200
        ready = http.get("/health/ready")
        assert ready.status_code == 503
        assert ready.json()["status"] == "starting"
        assert ready.json()["progress"] == {"step": "reading weights"}
        early = http.post("/v1/completions", json={"prompt": "x"})
        assert early.status_code == 503
        assert early.headers["retry-after"]
        assert early.json()["error"]["code"] == "model_loading"
        process.ready()
        assert http.post("/v1/completions", json={"prompt": "x", "max_tokens": 1}).status_code == 200


def test_load_failure_is_not_zero(launch):
    process = launch({"load_error": "the weights are gone"}, dead_linger=0.1)
    assert process.wait() == 1
    assert any("the weights are gone" in e.get("msg", "") + e.get("exception", "") for e in process.log)


def test_bad_template_stops_the_start_at_once(launch):
    """Also while the engine would load for a long time."""
    process = launch({"load_seconds": 60}, chat_template="{% for %}", dead_linger=0.1)
    assert process.wait() == 1
    assert any("chat template does not compile" in str(e) for e in process.log)


def test_port_in_use(launch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = launch(port=taken.getsockname()[1])
        assert process.wait() == 1
        assert any("address already in use" in str(e) for e in process.log)


def test_unix_socket(launch, tmp_path):
    """Only the owner may connect, and nothing is left behind."""
    path = tmp_path / "s"
    process = launch(uds=str(path))
    process.event("ready")
    assert path.stat().st_mode & 0o777 == 0o600
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://x") as http:
        assert http.get("/health/live").status_code == 200
    process.popen.send_signal(signal.SIGTERM)
    assert process.wait() == 0
    assert not path.exists()


def test_stop_while_loading(launch):
    process = launch({"load_seconds": 60})
    assert process.event("listening")
    process.popen.send_signal(signal.SIGTERM)
    assert process.wait(5) == 0


def test_drain(launch):
    """Streams in flight finish, new requests are refused, the exit code is 0."""
    process = launch().ready()
    streams = [Stream(process.url, 150) for _ in range(10)]
    assert all(s.first.wait(10) for s in streams)
    process.popen.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    with httpx.Client(base_url=process.url) as http:
        assert http.get("/health/ready").status_code == 503
        assert http.get("/health").status_code == 200
        refused = http.post("/v1/completions", json={"prompt": "x"})
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert refused.json()["error"]["code"] == "server_draining"
    for stream in streams:
        events = stream.events()
        assert events[-1] == "[DONE]"
        assert sum(len(e["choices"][0]["text"]) for e in events[:-1]) == 150
    assert process.wait() == 0
    lines = [e for e in process.log if e.get("event") == "request" and e["status"] == 200]
    assert len(lines) == 10


def test_drain_delay(launch):
    """Before refusing, a stopping server is unready but still answers."""
    process = launch(drain_delay=0.6).ready()
    process.popen.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    with httpx.Client(base_url=process.url) as http:
        assert http.get("/health/ready").status_code == 503
        assert http.post("/v1/completions", json={"prompt": "x", "max_tokens": 1}).status_code == 200
    assert process.wait() == 0


@pytest.mark.parametrize("second_signal", [False, True], ids=["timeout", "second signal"])
def test_forced_stop(launch, second_signal):
    """Time over, or a second signal: an error event and no [DONE], never a cut stream; exit 0."""
    process = launch(shutdown_timeout=30.0 if second_signal else 0.3).ready()
    stream = Stream(process.url, 2000)
    assert stream.first.wait(10)
    process.popen.send_signal(signal.SIGTERM)
    if second_signal:
        time.sleep(0.1)
        process.popen.send_signal(signal.SIGTERM)
    assert process.wait(5) == 0
    events = stream.events()
    assert "[DONE]" not in events
    assert events[-1]["error"]["code"] == "server_draining"


@pytest.mark.parametrize(
    ("number", "config"),
    [(signal.SIGUSR1, {}), (signal.SIGUSR2, {"engine_stall_timeout": 0.5})],
    ids=["death", "stall"],
)
def test_engine_death(launch, number, config):
    """Everybody hears of it within 2 s; health is 503; the exit code is not 0."""
    process = launch(dead_linger=1.5, **config).ready()
    streams = [Stream(process.url, 2000) for _ in range(5)]
    assert all(s.first.wait(10) for s in streams)
    waiting = []
    body = {"prompt": "x", "max_tokens": 2000}
    other = threading.Thread(
        target=lambda: waiting.append(httpx.post(f"{process.url}/v1/completions", json=body, timeout=20))
    )
    other.start()
    time.sleep(0.1)
    killed = time.monotonic()
    process.popen.send_signal(number)
    with httpx.Client(base_url=process.url) as http:
        while http.get("/health").status_code != 503:
            assert time.monotonic() - killed < 2.0
            time.sleep(0.02)
        assert http.get("/health/live").status_code == 503
        assert http.post("/v1/completions", json={"prompt": "x"}).json()["error"]["code"] == "engine_dead"
    for stream in streams:
        events = stream.events()
        assert events[-1]["error"]["code"] == "engine_dead"
        assert stream.ended - killed < 2.0
    other.join(10)
    assert waiting[0].status_code == 503
    assert process.wait() == 1
    assert "fd_engine_up" not in str(process.log)
