"""Flags fill the configuration; what is not given keeps its default."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import pytest

from fd_core.serving.config import ServeConfig
from fd_core.serving.flags import GROUPS, add_arguments, serve_config


def parsed(*words: str) -> ServeConfig:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return serve_config(parser.parse_args(words), Path("/m/tiny"))


def test_nothing_given_is_the_default():
    assert parsed() == ServeConfig(model_dir=Path("/m/tiny"))
    assert parsed().model_names == ("tiny",)


def test_values():
    found = parsed(
        *("--host", "::1", "--port", "0", "--api-key", "a", "--api-key", "b", "--no-ui", "--no-metrics"),
        *("--served-model-name", "x", "y", "--metrics-compat", "vllm", "fastdeploy"),
        *("--request-timeout", "2.5", "--max-queue", "7", "--disable-access-log", "--strict-fields"),
    )
    assert (found.host, found.port, found.api_keys, found.ui, found.metrics) == (
        "::1",
        0,
        ("a", "b"),
        False,
        False,
    )
    assert found.model_names == ("x", "y")
    assert found.model_name == "x"
    assert found.metrics_compat == ("vllm", "fastdeploy")
    assert (found.request_timeout, found.max_queue, found.log_requests) == (2.5, 7, False)
    assert found.strict_fields


def test_every_flag_has_a_field():
    fields = {f.name for f in dataclasses.fields(ServeConfig)}
    for rows in GROUPS.values():
        for flag, settings in rows:
            assert settings.get("dest", flag.lstrip("-").replace("-", "_")) in fields, flag


def test_help_tells_defaults(capsys):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "(default 127.0.0.1)" in text
    assert "(default 33554432)" in text


def test_drain_delay():
    assert parsed().drain_seconds == 0
    assert parsed("--host", "0.0.0.0").drain_seconds == 5
    assert parsed("--drain-delay", "1").drain_seconds == 1
