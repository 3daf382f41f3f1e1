"""Request bodies: read within limits, then decoded strictly."""

from __future__ import annotations

import asyncio
import re
import time
from itertools import accumulate
from typing import Any, TypeVar

import msgspec

from fd_core.serving.config import ServeConfig
from fd_core.serving.errors import RequestError
from fd_core.serving.generation import ClientGoneError
from fd_core.serving.http.types import Receive, Scope

T = TypeVar("T")
# Strings (closed or not) and everything that is no bracket. Each alternative takes what it can and
# never gives back, so the time is linear in the body.
NOISE = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[^\[\]{}"]+', re.DOTALL)
STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
THREAD_SIZE = 256 << 10  # larger bodies are decoded outside the event loop


async def read_body(scope: Scope, receive: Receive, config: ServeConfig) -> bytes:
    """The body, refused with 413 as soon as it is known to be too large."""
    _check_declared(scope, config.max_request_bytes)
    parts: list[bytes] = []
    size = 0
    deadline = time.monotonic() + config.body_timeout
    while True:
        message = await _receive(receive, deadline)
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        part = message.get("body", b"")
        size += len(part)
        if size > config.max_request_bytes:
            raise too_large(config.max_request_bytes)
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


async def _receive(receive: Receive, deadline: float) -> Any:
    try:
        return await asyncio.wait_for(receive(), deadline - time.monotonic())
    except asyncio.TimeoutError:
        raise RequestError(
            "the request body did not arrive in time", status=408, code="body_timeout"
        ) from None


def _check_declared(scope: Scope, most: int) -> None:
    headers = dict(scope["headers"])
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind != b"application/json":
        # Also keeps web pages of other origins from posting without a preflight.
        raise RequestError(
            f"Content-Type: want application/json, found {kind.decode('latin-1')[:100]!r}",
            status=415,
            code="unsupported_media_type",
        )
    declared = headers.get(b"content-length", b"0")
    if declared.isdigit() and int(declared) > most:
        raise too_large(most)


def too_large(most: int) -> RequestError:
    return RequestError(f"the body is larger than {most} bytes", status=413, code="request_too_large")


async def decode(body: bytes, kind: type[T], config: ServeConfig) -> tuple[T, int]:
    """(the request, number of unknown top-level fields)."""
    if len(body) > THREAD_SIZE:
        return await asyncio.to_thread(decode_now, body, kind, config)
    return decode_now(body, kind, config)


def decode_now(body: bytes, kind: type[T], config: ServeConfig) -> tuple[T, int]:
    check_depth(body, config.max_json_depth)
    try:
        body.decode()
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        found = msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise RequestError(str(error), param=_param(str(error)), code="invalid_type") from None
    except UnicodeDecodeError as error:
        raise RequestError(f"the body is not UTF-8: byte {error.start}", code="invalid_json") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise RequestError(f"the body is not JSON: {error}", code="invalid_json") from None
    unknown = sorted(set(fields) - set(kind.__struct_fields__))  # type: ignore[attr-defined]
    if unknown and config.strict_fields:
        raise RequestError(f"unknown field {unknown[0]!r}", param=unknown[0][:100], code="unknown_field")
    return found, len(unknown)


def _param(message: str) -> str | None:
    """`... - at `$.messages[0].role`` names the field; a missing one is named in the text."""
    at = re.search(r"at `\$\.?([^`]*)`\Z", message)
    if at:
        return at[1] or None
    missing = re.search(r"missing required field `(\w+)`", message)
    return missing[1] if missing else None


def check_depth(body: bytes, most: int) -> None:
    """Refuse nesting deeper than `most` before anything recursive sees it."""
    if body.count(b"[") + body.count(b"{") <= most:
        return
    depths = accumulate(map(STEP.__getitem__, NOISE.sub(b"", body)))
    if any(depth > most for depth in depths):
        raise RequestError(f"the body is nested deeper than {most} levels", code="json_too_deep")
