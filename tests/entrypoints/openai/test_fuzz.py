"""Mutated requests: whatever arrives, the answer is 2xx or a 4xx with an error body, never a 5xx."""

from __future__ import annotations

import json

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fd_core.serving.protocol.chat as chat_protocol
import fd_core.serving.protocol.completion as completion_protocol

CHAT = {
    "model": "toy",
    "messages": [{"role": "user", "content": "hi"}],
    "max_tokens": 3,
    "temperature": 0.5,
    "stop": ["x", "yy"],
    "logit_bias": {"5": 1.5},
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "response_format": {"type": "text"},
    "stream_options": None,
}
COMPLETION = {"prompt": ["hello", "you"], "max_tokens": 3, "n": 2, "echo": True, "logprobs": 1, "seed": 7}
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
    st.sampled_from([0, 1, -1, 2**31, 2**63 - 1, 2**63, "", "\x00", "\ud7ff", "<|im_end|>", "😀"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
FIELDS = {
    "/v1/chat/completions": (CHAT, chat_protocol.ChatRequest.__struct_fields__),
    "/v1/completions": (COMPLETION, completion_protocol.CompletionRequest.__struct_fields__),
}
QUIET = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def http(server):
    with server.http() as made:
        yield made


def check(answer: httpx.Response) -> None:
    assert answer.status_code == 200 or 400 <= answer.status_code < 500, answer.text[:500]
    if answer.status_code != 200:
        assert answer.json()["error"]["message"]


def post(http, route, body: bytes) -> None:
    check(http.post(route, content=body, headers={"content-type": "application/json"}))


@QUIET
@given(st.sampled_from(sorted(FIELDS)), st.data())
def test_odd_values(http, route, data):
    """Known fields with values of any kind."""
    body, names = FIELDS[route]
    changes = data.draw(st.dictionaries(st.sampled_from(names), VALUES, min_size=1, max_size=3))
    changes.pop("max_tokens", None)
    changes.pop("max_completion_tokens", None)
    post(http, route, json.dumps({**body, **changes, "n": 1}).encode())


@QUIET
@given(st.sampled_from(sorted(FIELDS)), st.data())
def test_mutated_bytes(http, route, data):
    """A valid body with bytes changed, cut out or doubled."""
    body = bytearray(json.dumps(FIELDS[route][0]).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        size = data.draw(st.integers(1, 8))
        change = data.draw(st.sampled_from(["set", "cut", "double"]))
        if change == "set":
            body[at] = data.draw(st.integers(0, 255))
        elif change == "cut" and len(body) > size:
            del body[at : at + size]
        else:
            body[at:at] = body[at : at + size]
    post(http, route, bytes(body))


@QUIET
@given(st.binary(max_size=60))
def test_random_bytes(http, data):
    post(http, "/v1/completions", data)


@QUIET
@given(
    st.dictionaries(st.text(max_size=6), VALUES, max_size=4), st.sampled_from(["/tokenize", "/detokenize"])
)
def test_other_routes(http, body, route):
    check(http.post(route, json=body))
