"""Paddle with fd-core's operators registered, before any test builds a graph."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="session")
def paddle() -> Any:
    module = pytest.importorskip("paddle", reason="paddlepaddle is not installed")
    module.disable_signal_handler()
    import fd_core.paddle.static  # noqa: F401

    return module
