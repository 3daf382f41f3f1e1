"""Fields that every log line of a task carries."""

from __future__ import annotations

from contextvars import ContextVar

request_id: ContextVar[str] = ContextVar("fd_request_id", default="")
