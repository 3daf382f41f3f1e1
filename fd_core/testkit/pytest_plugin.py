"""Loaded by pytest through the entry point `fd_core`: the kit's option, and nothing else."""

from __future__ import annotations

from typing import Any


def pytest_addoption(parser: Any) -> None:
    group = parser.getgroup("fd_core")
    group.addoption("--fd-report", metavar="FILE", help="write the conformance findings as JSON")
