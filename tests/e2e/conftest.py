"""A real `fd serve` with the embedded model, as a user starts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The base URL of a running server; it must stop by itself, with status 0, when told to."""
    command = [sys.executable, "-m", "fd_core", "serve", "--port", "0", "--log-format", "json"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "FD_LOG": "info"}
    )
    try:
        yield f"http://127.0.0.1:{_wait_until_ready(process)}"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _wait_until_ready(process: subprocess.Popen[str], seconds: float = 120) -> int:
    assert process.stderr is not None
    port, until = 0, time.monotonic() + seconds
    for line in process.stderr:
        entry = json.loads(line) if line.startswith("{") else {}
        port = entry.get("port", port)
        if entry.get("phase") == "ready":
            return port
        assert time.monotonic() < until, "the server does not become ready"
    raise AssertionError(f"the server ended with status {process.wait()}")
