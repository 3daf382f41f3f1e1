"""A real `fd serve` with the embedded model, as a user starts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a running server; it must stop by itself, with status 0, when told to."""
    log = tmp_path_factory.mktemp("server") / "log.jsonl"
    command = [sys.executable, "-m", "fd_core", "serve", "--port", "0", "--log-format", "json"]
    with log.open("w") as stderr:  # a pipe that nobody reads would block the server
        process = subprocess.Popen(command, stderr=stderr, env={**os.environ, "FD_LOG": "info"})
    try:
        yield f"http://127.0.0.1:{wait_until_ready(process, log)}"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], log: Path, seconds: float = 120) -> int:
    """The port, once the server says that it is ready."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        entries = [entry for line in log.read_text().splitlines() if (entry := parse(line))]
        if any(entry.get("phase") == "ready" for entry in entries):
            return next(int(entry["port"]) for entry in entries if "port" in entry)
        assert process.poll() is None, f"the server ended: {log.read_text()}"
        time.sleep(0.1)
    raise AssertionError(f"the server does not become ready: {log.read_text()}")


def parse(line: str) -> dict[str, Any]:
    return dict(json.loads(line)) if line.startswith("{") and line.endswith("}") else {}
