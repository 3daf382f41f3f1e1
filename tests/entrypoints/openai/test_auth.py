"""Keys: every path needs one but the few that are listed."""

from __future__ import annotations

import socket

import pytest

from fd_core.host.errors import FdError
from fd_core.serving.config import ServeConfig
from fd_core.serving.http.auth import PUBLIC, KeyRing, key_ring
from fd_core.serving.http.routes import ROUTES

KEYS = ("right-key", "second-key")
TRICKS = [
    "//v1/models",
    "/v1//models",
    "/health/../v1/models",
    "/health/live/../../v1/models",
    "/health%2f..%2fv1/models",
    "/%76%31/models",
    "/v1/models;x",
    "/v1/models%00",
    "/v1/models?health",
    "/health/",
    "/health?x=/health",
    "/HEALTH",
    "/health%20",
    "/health;/v1/models",
    "/./v1/models",
    "\\v1\\models",
    "/metrics#/health",
    "/v1/models/../../health",
]


@pytest.fixture(scope="module")
def locked(start_for_module):
    return start_for_module(api_keys=KEYS, environ={"FD_API_KEY": "env-key, other-env"})


def status(
    port: int,
    target: str,
    key: str | None = None,
    method: str = "GET",
    version: str = "1.1",
    extra: str = "",
) -> int:
    """Send a target exactly as written, which client libraries would tidy up."""
    lines = [f"{method} {target} HTTP/{version}", "Host: x", "Connection: close"]
    lines += [f"Authorization: Bearer {key}"] if key is not None else []
    lines += [extra] if extra else []
    with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
        sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
        got = b""
        while part := sock.recv(65536):
            got += part
    return int(got.split(b" ", 2)[1])


@pytest.mark.parametrize(("method", "path"), [(m, p.replace("{model:path}", "toy")) for m, p, _ in ROUTES])
def test_every_route(locked, method, path):
    public = method == "GET" and path.encode() in PUBLIC
    for key in (None, "wrong", "", "right-key2", "right-ke"):
        assert (status(locked.port, path, key, method) != 401) == public
    for key in (*KEYS, "env-key", "other-env"):
        assert status(locked.port, path, key, method) != 401


@pytest.mark.parametrize("target", TRICKS)
def test_path_tricks(locked, target):
    for version in ("1.1", "1.0"):
        code = status(locked.port, target, version=version)
        public = target.split("?")[0].encode() in PUBLIC
        assert code == (200 if public else code)
        assert public or code in (400, 401)


@pytest.mark.parametrize(
    "extra",
    [
        "X-Original-URL: /health",
        "X-Forwarded-Path: /health",
        "X-Rewrite-URL: /health",
        "Upgrade: websocket\r\nConnection: Upgrade",
        "Authorization: Basic cmlnaHQta2V5",
        "Authorization: right-key",
        "Authorization: Bearer right-key\r\nAuthorization: Bearer wrong",
        "X-API-Key: right-key",
    ],
)
def test_header_tricks(locked, extra):
    assert status(locked.port, "/v1/models", extra=extra) == 401


def test_absolute_form_and_odd_methods(locked):
    assert status(locked.port, f"http://127.0.0.1:{locked.port}/v1/models") == 401
    assert status(locked.port, "http://x/health/../v1/models") == 401
    assert status(locked.port, "/health", method="POST") == 401
    assert status(locked.port, "/v1/models", method="HEAD") == 401
    assert status(locked.port, "/v1/models", method="OPTIONS") == 401


def test_refusal_has_the_error_body(locked):
    with locked.http() as http:
        answer = http.get("/v1/models")
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert answer.headers["www-authenticate"] == "Bearer"


def test_client_with_key(locked):
    import openai

    good = openai.OpenAI(base_url=f"{locked.url}/v1", api_key="second-key", max_retries=0)
    assert good.models.list().data[0].id == "toy"
    bad = openai.OpenAI(base_url=f"{locked.url}/v1", api_key="nope", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        bad.models.list()


def test_key_file_is_read_again(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# comment\none\n\n")
    keys = KeyRing((), file)
    assert keys
    assert keys.accepts(b"one")
    assert not keys.accepts(b"# comment")
    file.write_text("two\n")
    keys.reload()
    assert keys.accepts(b"two")
    assert not keys.accepts(b"one")
    file.write_text("")
    keys.reload()
    assert keys, "an emptied key file must lock the door, not open it"
    assert not keys.accepts(b"")


def test_keys_are_hashed_at_rest():
    keys = KeyRing(["plain-secret"])
    assert "plain-secret" not in repr(vars(keys)["_hashes"])
    config = ServeConfig(model_dir=None, api_keys=("plain-secret",))
    assert "plain-secret" not in repr(config)


@pytest.mark.parametrize(
    ("host", "open_door"),
    [
        ("127.0.0.1", False),
        ("::1", False),
        ("localhost", False),
        ("0.0.0.0", True),
        ("::", True),
        ("example.org", True),
    ],
)
def test_public_address_needs_keys(tmp_path, host, open_door):
    config = ServeConfig(model_dir=tmp_path, host=host)
    if open_door:
        with pytest.raises(FdError, match="--allow-unauthenticated"):
            config.check_exposure(bool(key_ring(config, {})))
    else:
        config.check_exposure(bool(key_ring(config, {})))
    config.check_exposure(bool(key_ring(config, {"FD_API_KEY": "k"})))
    ServeConfig(model_dir=tmp_path, host=host, allow_unauthenticated=True).check_exposure(False)


def test_missing_key_file_stops_the_start(tmp_path):
    with pytest.raises(FdError, match="--api-key-file"):
        key_ring(ServeConfig(model_dir=tmp_path, api_key_file=tmp_path / "none"), {})


def test_cors_is_off_by_default(server, start):
    headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    with server.http() as http:
        answer = http.get("/v1/models", headers=headers)
        assert "access-control-allow-origin" not in answer.headers
        assert http.options("/v1/chat/completions", headers=headers).status_code == 405
    allowed = start(allowed_origins=("https://good.example",))
    with allowed.http() as http:
        good = http.options("/v1/completions", headers={**headers, "origin": "https://good.example"})
        assert good.headers["access-control-allow-origin"] == "https://good.example"
        assert "access-control-allow-origin" not in http.get("/health", headers=headers).headers
