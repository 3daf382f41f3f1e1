"""Clients that leave at any moment: nothing is lost, crossed over or left behind."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import time

import httpx
import pytest

from fd_core.engine.request import EngineRequest, SamplingParams
from fd_core.serving.inputs.text_model import TextModel
from fd_core.testkit.echo import expected_tokens

ROUNDS = 300


@pytest.fixture(scope="module")
def text(folder):
    return TextModel.load(folder)


def predicted(text, ids, seed, index, count):
    request = EngineRequest(request_id="x", prompt_token_ids=ids, params=SamplingParams(seed=seed))
    return text.tokenizer.decode(expected_tokens(request, index, count))


class Client:
    """One random request; `leave` says after how many chunks it goes away (None: it stays)."""

    def __init__(self, text: TextModel, number: int) -> None:
        self.random = random.Random(number)
        self.n = self.random.randint(1, 3)
        self.count = self.random.randint(1, 60)
        self.stream = self.random.random() < 0.6
        self.leave = self.random.choice([None, None, 0, 1, 5, 20])
        prompt = f"request {number} " + "x" * self.random.randint(0, 300)
        self.chat = self.random.random() < 0.5
        messages = [{"role": "user", "content": prompt}]
        ids = text.chat_prompt(messages).token_ids if self.chat else text.tokenizer.encode(prompt)
        self.wanted = [predicted(text, ids, number, i, self.count) for i in range(self.n)]
        self.body = {"max_tokens": self.count, "seed": number, "n": self.n, "stream": self.stream}
        self.body.update({"messages": messages} if self.chat else {"prompt": prompt})
        self.route = "/v1/chat/completions" if self.chat else "/v1/completions"

    async def run(self, http: httpx.AsyncClient) -> str:
        await asyncio.sleep(self.random.random() * 0.5)
        return await (self._stream(http) if self.stream else self._whole(http))

    async def _whole(self, http):
        post = http.post(self.route, json=self.body)
        if self.leave is not None:
            try:
                answer = await asyncio.wait_for(post, 0.002 * self.leave)
            except (asyncio.TimeoutError, httpx.TimeoutException):
                return "left"
        else:
            answer = await post
        assert answer.status_code == 200, answer.text
        found = answer.json()
        texts = [c["message"]["content"] if self.chat else c["text"] for c in found["choices"]]
        assert texts == self.wanted
        assert found["usage"]["completion_tokens"] == self.n * self.count
        return "complete"

    async def _stream(self, http):
        texts, chunks = [""] * self.n, 0
        async with http.stream("POST", self.route, json=self.body) as answer:
            assert answer.status_code == 200
            async for line in answer.aiter_lines():
                if self.leave is not None and chunks >= self.leave:
                    break
                if not line.startswith("data: "):
                    continue
                if line == "data: [DONE]":
                    assert texts == self.wanted
                    return "complete"
                for choice in json.loads(line[6:])["choices"]:
                    piece = choice["delta"].get("content", "") if self.chat else choice["text"]
                    texts[choice["index"]] += piece
                chunks += 1
        for got, wanted in zip(texts, self.wanted, strict=True):
            assert wanted.startswith(got)
        return "left"


async def storm(url: str, text: TextModel) -> list[str]:
    limits = httpx.Limits(max_connections=ROUNDS)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as http:
        return await asyncio.gather(*(Client(text, number).run(http) for number in range(ROUNDS)))


def test_storm(start, text):
    """300 mixed requests, about half of them leave: the others get exactly their own words."""
    server = start(max_queue=2000, engine_options={"step_time": 0.001, "blocks": 600})
    results = asyncio.run(storm(server.url, text))
    assert results.count("complete") > 100
    assert results.count("left") > 50
    assert server.settled(), f"{server.engine.live} requests are still live"
    stats = server.on_loop(lambda: server.engine._stats)
    assert stats.blocks_free == stats.blocks_total
    assert (stats.running, stats.waiting) == (0, 0)
    rendered = server.state.metrics.render().decode()
    assert not [line for line in rendered.splitlines() if 'code="5' in line]
    with server.client() as client:
        assert client.completions.create(model="toy", prompt="after", max_tokens=3).choices


def post(route: str, body: dict) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {route} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    return head.encode() + f"content-length: {len(data)}\r\n\r\n".encode() + data


def wait_for(condition, seconds=3.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "the condition did not come true"
        time.sleep(0.002)


@pytest.mark.parametrize("reset", [False, True], ids=["close", "reset"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_running_request_is_aborted(server, stream, reset):
    """Also without streaming the engine hears of it at once."""
    body = {"prompt": "long", "max_tokens": 2000, "stream": stream}
    sock = socket.create_connection(("127.0.0.1", server.port))
    sock.sendall(post("/v1/completions", body))
    wait_for(lambda: server.engine.live == 1)
    if reset:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    sock.close()
    left = time.monotonic()
    wait_for(lambda: server.engine.live == 0)
    assert time.monotonic() - left < 0.5


def test_waiting_request_is_aborted(start):
    """A request that the engine has not begun is dropped as well."""
    server = start(engine_options={"step_time": 0.001, "blocks": 130})
    first = socket.create_connection(("127.0.0.1", server.port))
    first.sendall(post("/v1/completions", {"prompt": "a" * 1000, "max_tokens": 1000}))
    wait_for(lambda: server.engine._stats.running == 1)
    second = socket.create_connection(("127.0.0.1", server.port))
    second.sendall(post("/v1/completions", {"prompt": "b" * 2000, "max_tokens": 40}))
    wait_for(lambda: server.engine._stats.waiting == 1)
    second.close()
    wait_for(lambda: server.engine._stats.waiting == 0)
    assert server.engine.live == 1
    first.close()
    wait_for(lambda: server.engine.live == 0)


def test_stop_string_frees_the_engine(server):
    """A completion that hit its stop string is not computed to the end."""
    with server.client() as client:
        full = client.completions.create(model="toy", prompt="stop here", max_tokens=50).choices[0].text
        before = server.engine._stats.generation_tokens
        client.completions.create(model="toy", prompt="stop here", max_tokens=2000, stop=full[10:14])
        assert server.settled()
        assert server.engine._stats.generation_tokens - before < 200


def test_overload(start):
    """Beyond the bound: 429 with Retry-After before anything is tokenised; the others finish."""
    server = start(max_queue=2, engine_options={"step_time": 0.005})
    server.on_loop(setattr, server.state.admission, "capacity", 3)

    async def flood():
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as http:
            body = {"prompt": "x", "max_tokens": 60}
            return await asyncio.gather(*(http.post("/v1/completions", json=body) for _ in range(12)))

    answers = asyncio.run(flood())
    codes = [a.status_code for a in answers]
    assert codes.count(200) == 3
    assert codes.count(429) == 9
    refused = next(a for a in answers if a.status_code == 429)
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert server.settled()


def test_request_timeout(start):
    server = start(engine_options={"step_time": 0.01})
    with server.http() as http:
        body = {"prompt": "x", "max_tokens": 2000}
        late = http.post("/v1/completions", json=body, headers={"x-request-timeout": "0.3"})
        assert late.status_code == 408
        assert late.json()["error"]["code"] == "request_timeout"
        stream = http.post(
            "/v1/completions", json={**body, "stream": True}, headers={"x-request-timeout": "0.3"}
        )
        assert stream.status_code == 200
        lines = [line for line in stream.text.splitlines() if line]
        assert json.loads(lines[-1][6:])["error"]["code"] == "request_timeout"
        assert "[DONE]" not in stream.text
        server.on_loop(server.engine.stall)
        queued = http.post("/v1/completions", json=body, headers={"x-request-timeout": "0.2"})
        assert queued.status_code == 503
    server.on_loop(server.engine.stall, False)
    assert server.settled()


def test_comments_while_waiting(start):
    """A client that waits long sees comments, then its answer."""
    server = start(keep_alive_comment=0.05)
    server.on_loop(server.engine.stall)
    with (
        server.http() as http,
        http.stream(
            "POST",
            "/v1/chat/completions",
            json={"messages": [{"role": "user", "content": "x"}], "stream": True, "max_tokens": 3},
        ) as answer,
    ):
        lines = answer.iter_lines()
        seen = [next(lines) for _ in range(8)]
        assert seen.count(": waiting") >= 2
        server.on_loop(server.engine.stall, False)
        rest = list(lines)
    assert rest[-2:] == ["data: [DONE]", ""]
