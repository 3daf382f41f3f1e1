"""Bad requests: each is a 4xx with an OpenAI body and disturbs nobody."""

from __future__ import annotations

import json
import socket
import threading
import time

import httpx
import pytest

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "hi"}]


def chat(**fields):
    return CHAT, {"messages": HELLO, "max_tokens": 4, **fields}


def complete(**fields):
    return COMPLETIONS, {"prompt": "hi", "max_tokens": 4, **fields}


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
DEEP: dict = {}
for _ in range(63):
    DEEP = {"a": DEEP}

# name -> ((route, body), the `param` of the refusal or None where there is none to name)
FIELDS = {
    "temperature low": (chat(temperature=-0.1), "temperature"),
    "temperature high": (chat(temperature=2.1), "temperature"),
    "temperature text": (chat(temperature="5"), "temperature"),
    "temperature bool": (chat(temperature=True), "temperature"),
    "top_p": (chat(top_p=1.5), "top_p"),
    "top_k": (chat(top_k=-2), "top_k"),
    "top_k fraction": (chat(top_k=1.5), "top_k"),
    "min_p": (chat(min_p=-1), "min_p"),
    "presence": (chat(presence_penalty=3), "presence_penalty"),
    "frequency": (chat(frequency_penalty=-3), "frequency_penalty"),
    "repetition zero": (chat(repetition_penalty=0), "repetition_penalty"),
    "repetition high": (chat(repetition_penalty=1e9), "repetition_penalty"),
    "max_tokens zero": (chat(max_tokens=0), "max_tokens"),
    "max_tokens negative": (chat(max_tokens=-1), "max_tokens"),
    "max_tokens bool": (chat(max_tokens=True), "max_tokens"),
    "max_tokens text": (chat(max_tokens="5"), "max_tokens"),
    "max_tokens 2^63": (chat(max_tokens=2**63), "max_tokens"),
    "max_tokens 1e22": (chat(max_tokens=10**22), "max_tokens"),
    "min_tokens above max": (chat(min_tokens=5), "min_tokens"),
    "min_tokens negative": (chat(min_tokens=-1), "min_tokens"),
    "seed 1e22": (chat(seed=10**22), "seed"),
    "seed fraction": (chat(seed=1.5), "seed"),
    "n zero": (chat(n=0), "n"),
    "n large": (chat(n=65), "n"),
    "n huge": (chat(n=16384), "n"),
    "best_of": (chat(best_of=3), "best_of"),
    "stop many": (chat(stop=["x"] * 17), "stop"),
    "stop 100000": (chat(stop=["x"] * 100_000), "stop"),
    "stop long": (chat(stop="x" * 257), "stop"),
    "stop number": (chat(stop=5), "stop"),
    "stop ids high": (chat(stop_token_ids=[273]), "stop_token_ids"),
    "stop ids 2^40": (chat(stop_token_ids=[2**40]), "stop_token_ids"),
    "stop ids negative": (chat(stop_token_ids=[-1]), "stop_token_ids"),
    "stop ids many": (chat(stop_token_ids=[1] * 1025), "stop_token_ids"),
    "bias key": (chat(logit_bias={"x": 1}), "logit_bias"),
    "bias id": (chat(logit_bias={"999999": 1}), "logit_bias"),
    "bias value": (chat(logit_bias={"1": 101}), "logit_bias"),
    "bias many": (chat(logit_bias={str(i): 1 for i in range(1025)}), "logit_bias"),
    "allowed none": (chat(allowed_token_ids=[]), "allowed_token_ids"),
    "allowed high": (chat(allowed_token_ids=[10**9]), "allowed_token_ids"),
    "bad words many": (chat(bad_words=["x"] * 129), "bad_words"),
    "bad words 50000": (chat(bad_words=["x"] * 50_000), "bad_words"),
    "bad words blank": (chat(bad_words=[" "]), "bad_words"),
    "top_logprobs alone": (chat(top_logprobs=2), "top_logprobs"),
    "top_logprobs high": (chat(logprobs=True, top_logprobs=21), "logprobs"),
    "top_logprobs negative": (chat(logprobs=True, top_logprobs=-1), "top_logprobs"),
    "logprobs number": (chat(logprobs=3), "logprobs"),
    "logprobs -1": (complete(logprobs=-1), "logprobs"),
    "logprobs 21": (complete(logprobs=21), "logprobs"),
    "logprobs bool": (complete(logprobs=True), "logprobs"),
    "prompt_logprobs": (complete(prompt_logprobs=100), "prompt_logprobs"),
    "scoring without logprobs": (complete(echo=True, max_tokens=0), "max_tokens"),
    "stream_options": (chat(stream_options={"include_usage": True}), "stream_options"),
    "stream text": (chat(stream="yes"), "stream"),
    "messages none": (chat(messages=[]), "messages"),
    "messages absent": ((CHAT, {}), "messages"),
    "messages text": (chat(messages="hi"), "messages"),
    "messages null": (chat(messages=None), "messages"),
    "messages many": (chat(messages=HELLO * 4097), "messages"),
    "role": (chat(messages=[{"role": "boss", "content": "x"}]), "messages[0].role"),
    "role absent": (chat(messages=[{"content": "x"}]), "messages[0]"),
    "content absent": (chat(messages=[{"role": "user"}]), "messages[0].content"),
    "content number": (chat(messages=[{"role": "user", "content": 5}]), "messages[0].content"),
    "content image": (
        chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
        "messages[0].content",
    ),
    "tool message first": (chat(messages=[{"role": "tool", "content": "x"}]), "messages[0].role"),
    "tool arguments": (
        chat(
            messages=[
                *HELLO,
                {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
            ]
        ),
        "messages[1].tool_calls",
    ),
    "continue after user": (chat(continue_final_message=True), "continue_final_message"),
    "template": (chat(chat_template="{{ 7 * 7 }}"), "chat_template"),
    "template options": (chat(chat_template_kwargs={"messages": []}), "chat_template_kwargs"),
    "tool_choice alone": (chat(tool_choice="auto"), "tool_choice"),
    "tool_choice unknown": (
        chat(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "g"}}),
        "tool_choice",
    ),
    "tool name": (chat(tools=[{"type": "function", "function": {"name": "a b"}}]), "tools"),
    "tools many": (chat(tools=[TOOL] * 257), "tools"),
    "two guides": (chat(guided_regex="a", guided_choice=["b"]), "structured_outputs"),
    "guide none": (chat(structured_outputs={}), "structured_outputs"),
    "guide long": (chat(guided_regex="a" * 70_000), "guided_regex"),
    "guide choices": (chat(guided_choice=["x"] * 5001), "guided_choice"),
    "guide no choice": (chat(guided_choice=[]), "guided_choice"),
    "guide no json": (chat(guided_json="{"), "guided_json"),
    "guide enum": (chat(guided_json={"enum": list(range(50_000))}), "guided_json"),
    "format type": (chat(response_format={"type": "xml"}), "response_format.type"),
    "format empty": (chat(response_format={"type": "json_schema"}), "response_format.json_schema"),
    "prompt empty": (complete(prompt=""), "prompt"),
    "prompt list empty": (complete(prompt=[]), "prompt"),
    "prompt ids empty": (complete(prompt=[[]]), "prompt"),
    "prompt mixed": (complete(prompt=["a", 1]), "prompt"),
    "prompt id high": (complete(prompt=[1, 273]), "prompt"),
    "prompt id 2^70": (complete(prompt=[2**70]), "prompt"),
    "prompt id negative": (complete(prompt=[-1]), "prompt"),
    "prompt object": (complete(prompt={"a": 1}), "prompt"),
    "prompt null": (complete(prompt=None), "prompt"),
    "prompt too long": (complete(prompt="word " * 8000), "prompt"),
    "prompt too many tokens": (complete(prompt=[5] * 2048), "prompt"),
    "prompts times n": (complete(prompt=["a"] * 100, n=64), "prompt"),
    "suffix": (complete(suffix="end"), "suffix"),
    "truncate": (complete(truncate_prompt_tokens=0), "truncate_prompt_tokens"),
    "deep": (chat(metadata=DEEP), None),
    "detokenize id": (("/detokenize", {"tokens": [999]}), "tokens"),
    "detokenize text": (("/detokenize", {"tokens": "x"}), "tokens"),
    "tokenize both": (("/tokenize", {"prompt": "a", "messages": HELLO}), "prompt"),
    "tokenize neither": (("/tokenize", {}), "prompt"),
}

# Bodies that json.dumps would not write.
RAW = {
    "empty": b"",
    "no json": b"hello",
    "cut off": b'{"messages": [{"role": "user"',
    "array": b"[]",
    "number": b"7",
    "bom": b'\xef\xbb\xbf{"prompt": "a"}',
    "nul": b"\x00",
    "two values": b'{"prompt": "a"} {}',
    "nan": b'{"prompt": "a", "temperature": NaN}',
    "infinity": b'{"prompt": "a", "temperature": Infinity}',
    "1e999": b'{"prompt": "a", "temperature": 1e999}',
    "not utf-8": b'{"prompt": "a\xff"}',
    "not utf-8 in an unknown field": b'{"prompt": "a", "zzz": "\xff"}',
    "lone surrogate": b'{"prompt": "\\ud800"}',
    "deep arrays": b'{"prompt": "a", "zzz": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep and open": b"[" * 200_000,
    "brackets in a string": b'{"prompt": "' + b"[" * 100 + b'", "n": 0}',
    "quotes": b'{"prompt": "' + b'\\"' * 200_000,
}


def check_refusal(answer: httpx.Response, status: int = 400) -> dict:
    assert answer.status_code == status, answer.text[:300]
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["code"]
    return error


@pytest.fixture(scope="module")
def http(server):
    with server.http() as made:
        yield made


@pytest.mark.parametrize("name", FIELDS)
def test_fields(http, name):
    (route, body), param = FIELDS[name]
    started = time.perf_counter()
    error = check_refusal(http.post(route, json=body))
    assert time.perf_counter() - started < 2.0
    assert (error["param"] or "").replace("[...]", "[0]") == (param or "")
    assert len(error["message"]) < 1000


@pytest.mark.parametrize("name", RAW)
def test_raw_bodies(http, name):
    headers = {"content-type": "application/json"}
    check_refusal(http.post(COMPLETIONS, content=RAW[name], headers=headers))


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
def test_content_type(http, kind):
    headers = {"content-type": kind} if kind else {}
    body = json.dumps(complete()[1]).encode()
    check_refusal(http.post(COMPLETIONS, content=body, headers=headers), 415)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v1", 404),
        ("GET", "/v1/chat/completions/", 404),
        ("POST", "/V1/completions", 404),
        ("GET", COMPLETIONS, 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/health", 405),
        ("PUT", "/", 405),
        ("GET", "/v1/models/none", 404),
    ],
)
def test_routes(http, method, path, status):
    answer = http.request(method, path)
    check_refusal(answer, status)
    assert ("allow" in answer.headers) == (status == 405)


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "x", "1e99", ""])
def test_timeout_header(http, value):
    error = check_refusal(http.post(COMPLETIONS, json=complete()[1], headers={"x-request-timeout": value}))
    assert error["param"] == "X-Request-Timeout"


def test_declared_too_large(start):
    server = start(max_request_bytes=10_000)
    with server.http() as http:
        check_refusal(http.post(COMPLETIONS, json=complete(prompt="x" * 20_000)[1]), 413)
        assert http.post(COMPLETIONS, json=complete()[1]).status_code == 200


def test_chunked_too_large(start):
    """An upload without a length is cut off while it is being read."""
    server = start(max_request_bytes=100_000)
    sent = []

    def endless():
        for _ in range(100):
            sent.append(1)
            yield b" " * 10_000

    with server.http() as http:
        answer = http.post(COMPLETIONS, content=endless(), headers={"content-type": "application/json"})
    check_refusal(answer, 413)


def exchange(port: int, data: bytes, seconds: float = 5.0) -> bytes:
    """Send bytes, return all that comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as sock:
        sock.sendall(data)
        got = b""
        try:
            while part := sock.recv(65536):
                got += part
        except (TimeoutError, ConnectionResetError):
            pass
        return got


@pytest.mark.parametrize(
    "data",
    [
        b"GET /health HTTP/1.1\r\nhost: x\r\nlong: " + b"a" * 70_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: x\r\n" + b"".join(b"h%d: v\r\n" % i for i in range(9000)) + b"\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
    ],
)
def test_large_head(server, data):
    got = exchange(server.port, data)
    assert got.startswith(b"HTTP/1.1 431")
    assert b'"error"' in got


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"POST /ping HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n",
    ],
)
def test_not_http(server, data):
    got = exchange(server.port, data)
    assert got.startswith(b"HTTP/1.1 400"), got[:100]
    assert b'"error"' in got


def test_slow_head(start):
    """A client that does not finish its head is let go."""
    server = start(header_timeout=0.3)
    started = time.monotonic()
    assert exchange(server.port, b"GET /health HTTP/1.1\r\nhost: x\r\n") == b""
    assert time.monotonic() - started < 3


def test_slow_body(start):
    server = start(body_timeout=0.3)
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    got = exchange(server.port, head + b'content-length: 100\r\nconnection: close\r\n\r\n{"pro', 3)
    assert got.startswith(b"HTTP/1.1 408")


def test_unknown_fields(start):
    server = start(strict_fields=True)
    with server.http() as http:
        error = check_refusal(http.post(COMPLETIONS, json=complete(zzz=1)[1]))
        assert error["param"] == "zzz"
        assert http.post(COMPLETIONS, json=complete(user="me", store=True)[1]).status_code == 200


def test_unknown_fields_are_counted(server, http):
    assert http.post(COMPLETIONS, json=complete(zzz=1, yyy=2)[1]).status_code == 200
    until = time.monotonic() + 3
    while b"fd_unknown_fields_total 2.0" not in server.state.metrics.render():
        assert time.monotonic() < until, "two unknown fields were not counted"


def test_background_stream_is_not_disturbed(server, http):
    """All refusals of this module while an answer streams: it stays exact and even."""
    quiet = stream_gaps(server)
    stop = threading.Event()
    counts = []

    def disturb():
        with server.http() as other:
            while not stop.is_set():
                for (route, body), _ in FIELDS.values():
                    counts.append(other.post(route, json=body).status_code)
                    if stop.is_set():
                        return

    thread = threading.Thread(target=disturb)
    thread.start()
    loud = stream_gaps(server)
    stop.set()
    thread.join(20)
    assert loud[0] == quiet[0]
    assert counts
    assert set(counts) == {400}
    assert max(loud[1]) < 2.0


def stream_gaps(server) -> tuple[str, list[float]]:
    """(text, seconds between chunks) of one long answer."""
    text, gaps, last = "", [], time.perf_counter()
    with server.client() as client:
        for chunk in client.completions.create(
            model="toy", prompt="background", max_tokens=400, stream=True
        ):
            text += chunk.choices[0].text
            now = time.perf_counter()
            gaps.append(now - last)
            last = now
    return text, gaps
