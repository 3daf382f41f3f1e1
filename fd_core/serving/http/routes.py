"""The route table: method, path, handler. `openapi.json` is checked against it."""

from __future__ import annotations

from fd_core.serving.http import chat, completions, meta, pages
from fd_core.serving.http.endpoint import Handler

ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("POST", "/v1/chat/completions", chat.chat_completions),
    ("POST", "/v1/completions", completions.completions),
    ("GET", "/v1/models", meta.models),
    ("GET", "/v1/models/{model:path}", meta.model),
    ("POST", "/tokenize", meta.tokenize),
    ("POST", "/detokenize", meta.detokenize),
    ("GET", "/health", meta.health),
    ("GET", "/health/live", meta.live),
    ("GET", "/health/ready", meta.ready),
    ("GET", "/ping", meta.health),
    ("POST", "/ping", meta.health),
    ("GET", "/version", meta.version),
    ("GET", "/metrics", meta.metrics),
    ("GET", "/load", meta.load),
    ("GET", "/openapi.json", pages.openapi),
    ("GET", "/", pages.playground),
)
