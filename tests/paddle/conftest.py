"""Guests are imported by the tests that use them, not when tests are collected."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="session")
def paddle() -> Any:
    module = pytest.importorskip("paddle", reason="paddlepaddle is not installed")
    module.disable_signal_handler()  # its handlers would replace those of this process
    return module
