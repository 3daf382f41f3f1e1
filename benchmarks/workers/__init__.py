"""Engines under measurement, one process each, driven by JSON lines (see `serve`)."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

#: Tokens a sequence may have, where an engine plans for it.
CONTEXT = int(os.environ.get("BENCH_CONTEXT", "8192"))


class Worker(Protocol):
    """Both return seconds. The prompt of `decode` is computed outside the measured time."""

    def prefill(self, tokens: int) -> float: ...

    def decode(self, batch: int, context: int, steps: int) -> float: ...


def serve(make: Callable[[], Worker], about: dict[str, Any]) -> None:
    """Answer {"job": "prefill" | "decode", ...} lines on standard input until it closes."""
    started = time.perf_counter()
    worker = make()
    _say({"ready": True, "load_seconds": round(time.perf_counter() - started, 3), **about})
    for line in sys.stdin:
        job = json.loads(line)
        name = job.pop("job")
        _say({"seconds": getattr(worker, name)(**job)})


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def prompt_ids(count: int, seed: int = 0) -> list[int]:
    """The same ids for every engine."""
    return [(i * 7919 + seed * 104729 + 11) % 4000 + 10 for i in range(count)]
