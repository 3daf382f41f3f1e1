"""The `fd` logger tree: no handler until a program asks for one, JSON lines or text, levels by subtree.

`FD_LOG=info,fd.cache=debug` sets levels; a bare level is that of the whole tree. Prompts, answers and
keys are never logged here; request content is the caller's explicit choice.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping
from typing import IO, Any

import msgspec

from fd_core.observe.context import request_id

ROOT = "fd"
FOREIGN = ("uvicorn.error",)  # libraries whose warnings belong in our log
LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def logger(name: str = "") -> logging.Logger:
    """`logger("serving")` is `fd.serving`."""
    return logging.getLogger(f"{ROOT}.{name}" if name else ROOT)


def parse_levels(text: str) -> dict[str, int]:
    """`info,fd.cache=debug` to levels by logger name."""
    found = {ROOT: logging.INFO}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, _, level = part.rpartition("=")
        if level.lower() not in LEVELS:
            raise ValueError(f"FD_LOG: want one of {', '.join(LEVELS)}, found {level!r} in {part!r}")
        name = name.strip() or ROOT
        if name != ROOT and not name.startswith(ROOT + "."):
            raise ValueError(f"FD_LOG: want logger names that begin with 'fd.', found {name!r}")
        found[name] = LEVELS[level.lower()]
    return found


def record_fields(record: logging.LogRecord) -> dict[str, Any]:
    """What the caller passed as `extra`."""
    return {k: v for k, v in vars(record).items() if k not in STANDARD and not k.startswith("_")}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ts, level, logger, msg, pid, request_id, then the extra fields."""

    def __init__(self, fixed: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self._fixed = dict(fixed or {})

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "ts": round(record.created, 6),
            "level": record.levelname.lower(),
            "logger": record.name,
            "msg": record.getMessage(),
            "pid": record.process,
            **self._fixed,
        }
        if current := request_id.get():
            line["request_id"] = current
        line.update(record_fields(record))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


class TextFormatter(logging.Formatter):
    """`12:00:00.123 INFO  fd.serving message key=value`."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        fields = record_fields(record)
        if (current := request_id.get()) and "request_id" not in fields:
            fields["request_id"] = current
        tail = "".join(f" {k}={v}" for k, v in fields.items())
        head = f"{clock}.{int(record.msecs):03d} {record.levelname:<7} {record.name}"
        text = f"{head} {record.getMessage()}{tail}"
        text = text.replace("\r", "\\r").replace("\n", "\\n")
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class Repeats(logging.Filter):
    """Lets the same message (before its arguments) through `limit` times per `period` seconds.

    The next one that passes says how many were left out. Lines with an `event` are never dropped:
    each finished request has its line.
    """

    def __init__(self, limit: int = 20, period: float = 10.0) -> None:
        super().__init__()
        self._limit, self._period = limit, period
        self._seen: dict[tuple[str, str], list[float]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if hasattr(record, "event"):
            return True
        state = self._seen.setdefault((record.name, str(record.msg)), [record.created, 0.0])
        if record.created - state[0] >= self._period:
            if (dropped := int(state[1]) - self._limit) > 0:
                record.repeats_left_out = dropped
            state[:] = [record.created, 0.0]
        state[1] += 1
        if len(self._seen) > 4096:
            self._seen.clear()
        return state[1] <= self._limit


def configure(
    form: str | None = None,
    levels: str | None = None,
    stream: IO[str] | None = None,
    fields: Mapping[str, Any] | None = None,
) -> logging.Handler:
    """Attach one handler to the tree in place of those it has; for programs, not for libraries.

    `form`: "json", "text", or None: `FD_LOG_FORMAT`, else text on a terminal. `levels` None reads
    `FD_LOG`, else `FD_LOG_LEVEL`. Processes started by this one inherit those variables.
    """
    stream = stream or sys.stderr
    form = form or os.environ.get("FD_LOG_FORMAT") or ("text" if stream.isatty() else "json")
    if form not in ("json", "text"):
        raise ValueError(f"log format: want 'json' or 'text', found {form!r}")
    handler = logging.StreamHandler(stream)
    handler.set_name("fd-core")
    handler.setFormatter(JsonFormatter(fields) if form == "json" else TextFormatter())
    handler.addFilter(Repeats())
    if levels is None:
        levels = os.environ.get("FD_LOG") or os.environ.get("FD_LOG_LEVEL", "")
    for name, level in parse_levels(levels).items():
        logging.getLogger(name).setLevel(level)
    logging.getLogger(ROOT).handlers.clear()
    _attach(logging.getLogger(ROOT), handler)
    for name in FOREIGN:
        logging.getLogger(name).setLevel(logging.WARNING)
        _attach(logging.getLogger(name), handler)
    return handler


def _attach(target: logging.Logger, handler: logging.Handler) -> None:
    for old in [h for h in target.handlers if h.get_name() == "fd-core"]:
        target.removeHandler(old)
    target.addHandler(handler)
    target.propagate = False
