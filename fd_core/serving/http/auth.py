"""API keys, checked on the raw path before anything else sees the request."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from fd_core.host.errors import FdError
from fd_core.serving.config import ServeConfig
from fd_core.serving.errors import RequestError
from fd_core.serving.http.types import App, Receive, Scope, Send

# Exact raw paths that answer without a key, GET and HEAD only: probes, and the playground's page,
# which holds nothing but itself.
PUBLIC = frozenset({b"/health", b"/health/live", b"/health/ready", b"/ping", b"/"})
REFUSAL = RequestError(
    "want an API key as 'Authorization: Bearer KEY', found none that is valid",
    code="invalid_api_key",
    status=401,
    headers={"WWW-Authenticate": "Bearer"},
)


class KeyRing:
    """Valid keys as hashes. `reload` reads the key file again."""

    def __init__(self, given: Iterable[str], file: Path | None = None) -> None:
        self._given = [k for k in given if k]
        self._file = file
        self._hashes: list[bytes] = []
        self.reload()

    def reload(self) -> None:
        keys = list(self._given)
        if self._file is not None:
            lines = self._file.read_text(encoding="utf-8").splitlines()
            keys += [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        self._hashes = [_digest(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        """Whether keys are needed at all: a key file that became empty locks the door."""
        return bool(self._hashes) or self._file is not None

    def accepts(self, key: bytes) -> bool:
        """Takes the same time for every key: all hashes are compared, each in constant time."""
        digest = _digest(key)
        found = False
        for known in self._hashes:
            found |= hmac.compare_digest(digest, known)
        return found


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def key_ring(config: ServeConfig, environ: Mapping[str, str] = os.environ) -> KeyRing:
    """Keys of flags, of `FD_API_KEY` (several separated by commas) and of the key file."""
    from_environment = (k.strip() for k in environ.get("FD_API_KEY", "").split(","))
    try:
        return KeyRing([*config.api_keys, *from_environment], config.api_key_file)
    except (OSError, UnicodeDecodeError) as error:
        raise FdError(f"--api-key-file: want a readable file with one key a line: {error}") from error


class Auth:
    """The outermost wrapper: denies unless the key is right or the path is listed as public."""

    def __init__(self, app: App, keys: KeyRing) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or not self._keys or self._public(scope) or self._known(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await _refuse(send)

    def _public(self, scope: Scope) -> bool:
        return scope.get("method") in ("GET", "HEAD") and scope.get("raw_path") in PUBLIC

    def _known(self, scope: Scope) -> bool:
        given = [v for k, v in scope["headers"] if k == b"authorization"]
        kind, _, key = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        return kind.lower() == b"bearer" and self._keys.accepts(key.strip())


async def _refuse(send: Send) -> None:
    body = REFUSAL.encoded()
    headers = [(k.lower().encode(), v.encode()) for k, v in REFUSAL.headers.items()]
    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": body})
