"""The logger tree: silent until asked, structured, filtered by subtree."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

import fd_core
from fd_core.observe.context import request_id
from fd_core.observe.logs import FOREIGN, Repeats, configure, logger, parse_levels


@pytest.fixture
def restored():
    """Leave the process's loggers as they were."""
    names = ["fd", "fd.cache", *FOREIGN]
    before = {
        n: (logging.getLogger(n).handlers[:], logging.getLogger(n).level, logging.getLogger(n).propagate)
        for n in names
    }
    yield
    for name, (handlers, level, propagate) in before.items():
        found = logging.getLogger(name)
        found.handlers[:], found.propagate = handlers, propagate
        found.setLevel(level)


def written(form, emit, levels=""):
    stream = io.StringIO()
    configure(form, levels, stream, {"engine": "0"} if form == "json" else None)
    emit()
    return stream.getvalue()


def test_import_touches_nothing():
    program = (
        "import logging; before = list(logging.getLogger().handlers);"
        "import fd_core.observe.logs, fd_core.observe.metrics;"
        "assert logging.getLogger().handlers == before; assert not logging.getLogger('fd').handlers"
    )
    root = Path(fd_core.__file__).parents[1]
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root)


def test_json_lines(restored):
    def emit():
        token = request_id.set("abc")
        logger("cache").warning("evicted %d", 3, extra={"event": "evict", "path": Path("/x")})
        request_id.reset(token)

    line = json.loads(written("json", emit))
    assert line["logger"] == "fd.cache"
    assert line["level"] == "warning"
    assert line["msg"] == "evicted 3"
    assert line["event"] == "evict"
    assert line["request_id"] == "abc"
    assert line["engine"] == "0"
    assert line["path"] == "/x"
    assert {"ts", "pid"} <= set(line)


def test_exceptions_are_one_json_line(restored):
    def emit():
        try:
            raise ValueError("boom\nand more")
        except ValueError:
            logger("x").exception("failed")

    text = written("json", emit)
    assert text.count("\n") == 1
    assert "boom" in json.loads(text)["exception"]


def test_text_lines_cannot_be_forged(restored):
    """A value with line breaks stays on its line."""
    text = written("text", lambda: logger("x").info("from %s", "a\nERROR fake", extra={"who": "b\nc"}))
    assert text.count("\n") == 1
    assert "fd.x from a\\nERROR fake who=b\\nc" in text


def test_levels_by_subtree(restored):
    def emit():
        logger("cache").debug("shown")
        logger("other").debug("hidden")
        logger("other").info("also hidden")

    text = written("text", emit, "warning,fd.cache=debug")
    assert "shown" in text
    assert "hidden" not in text


def test_level_text():
    assert parse_levels("") == {"fd": logging.INFO}
    assert parse_levels("DEBUG") == {"fd": logging.DEBUG}
    assert parse_levels("error, fd.a=debug") == {"fd": logging.ERROR, "fd.a": logging.DEBUG}
    for bad in ("loud", "fd.a=", "other=info", "fd.a=5"):
        with pytest.raises(ValueError, match="FD_LOG"):
            parse_levels(bad)


def test_configure_twice_logs_once(restored):
    first, second = io.StringIO(), io.StringIO()
    configure("text", "", first)
    configure("text", "", second)
    logger("x").info("hello")
    assert first.getvalue() == ""
    assert second.getvalue().count("hello") == 1
    with pytest.raises(ValueError, match="log format"):
        configure("xml")


def test_root_logger_is_left_alone(restored):
    before = list(logging.getLogger().handlers)
    configure("text", "", io.StringIO())
    assert logging.getLogger().handlers == before


def test_repeats_are_limited():
    limiter = Repeats(limit=3, period=10.0)

    def record(at, message="same %s", **extra):
        found = logging.makeLogRecord({"msg": message, "args": (at,), "name": "fd.x", **extra})
        found.created = at
        return found

    assert [limiter.filter(record(t)) for t in range(6)] == [True] * 3 + [False] * 3
    assert limiter.filter(record(5, "other"))
    assert all(limiter.filter(record(6, event="request")) for _ in range(50))
    later = record(11.0)
    assert limiter.filter(later)
    assert later.repeats_left_out == 3
