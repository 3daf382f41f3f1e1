"""The one place that imports Paddle; it leaves this process's logging and warnings as they were."""

from __future__ import annotations

import importlib
import logging
import warnings
from types import ModuleType


def quietly(name: str) -> ModuleType:
    """Import a module that configures the root logger and warns about tools that nobody asked for."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers


paddle = quietly("paddle")
