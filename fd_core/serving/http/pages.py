"""The playground page and the OpenAPI description."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import lru_cache
from importlib.resources import files

from fd_core.serving.errors import RequestError
from fd_core.serving.http.call import Call
from fd_core.serving.state import ServerState


@lru_cache(maxsize=4)
def static(name: str) -> bytes:
    return (files("fd_core.serving") / "static" / name).read_bytes()


@lru_cache(maxsize=1)
def content_policy() -> bytes:
    """Only this page's own script and style, and requests to this server."""
    page = static("playground.html").decode()
    script, style = (_hash(page, tag) for tag in ("script", "style"))
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ).encode()


def _hash(page: str, tag: str) -> str:
    found = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    if found is None:
        raise ValueError(f"playground.html: want one <{tag}> element, found none")
    return f"'sha256-{base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()}'"


async def playground(state: ServerState, call: Call) -> None:
    if not state.config.ui:
        raise RequestError("the page is switched off", status=404, code="not_found")
    headers = [
        (b"content-security-policy", content_policy()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
    ]
    await call.respond(static("playground.html"), kind=b"text/html; charset=utf-8", headers=headers)


async def openapi(state: ServerState, call: Call) -> None:
    from fd_core.serving.openapi import document

    await call.reply(document())
