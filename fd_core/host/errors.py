"""Errors of the host that carry a verdict."""

from __future__ import annotations

from fd_core.api.verdict import Verdict


class FdError(Exception):
    """An error with the verdict behind it."""

    def __init__(self, message: str, verdict: Verdict | None = None) -> None:
        super().__init__(message)
        self.verdict = verdict


class UnsupportedOpError(FdError):
    """No kernel of this device can run the call; raised on the host before anything is launched."""


class RequestFailedError(FdError, RuntimeError):
    """A request ended in an error of the engine or its device."""


class PlatformError(FdError):
    """No platform could be opened, or the one the user named could not."""
