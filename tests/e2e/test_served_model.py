"""The whole product: the embedded model behind the server, asked by the official client."""

from __future__ import annotations

import asyncio
import random
import re
import time
from typing import Any

import httpx
import pytest

from fd_core.llm import LLM, SamplingParams

openai = pytest.importorskip("openai", reason="the openai client is not installed")

PROMPTS = [
    "A list is",
    "To install the package,",
    "# Files\n\nThe file",
    "Use the command",
    "In Python, a tuple",
]


@pytest.fixture(scope="module")
def expected() -> dict[tuple[str, int], str]:
    """What the same model says offline, greedy, by (prompt, tokens)."""
    llm = LLM()
    made = {}
    for tokens in (1, 8, 30):
        params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
        for prompt, answer in zip(PROMPTS, llm.generate(PROMPTS, params), strict=True):
            made[prompt, tokens] = answer.text
    return made


def test_chat_streams_sentences_and_stops(server: str) -> None:
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="none")
    stream = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "Who are you?"}],
        temperature=0,
        max_tokens=200,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert re.search(r"[A-Z][^.]+\.", text)
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage.completion_tokens > 5


def test_served_text_is_the_offline_text(server: str, expected: dict[tuple[str, int], str]) -> None:
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="none")
    for (prompt, tokens), text in expected.items():
        answer = client.completions.create(
            model="tiny", prompt=prompt, max_tokens=tokens, temperature=0, extra_body={"ignore_eos": True}
        )
        assert answer.choices[0].text == text


def test_scoring_a_text_gives_the_offline_log_probabilities(server: str) -> None:
    """What evaluation harnesses do: token-id prompts, echo, log-probabilities, nothing generated."""
    llm = LLM()
    ids = llm.tokenizer.encode("To install the package, use the command line.")
    (offline,) = llm.generate([ids], SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1))
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="none")
    answer = client.completions.create(model="tiny", prompt=[ids, ids], max_tokens=0, echo=True, logprobs=1)
    for choice in answer.choices:
        scores = choice.logprobs.token_logprobs
        assert scores[0] is None
        assert scores[1:] == pytest.approx([p.logprob for p in offline.prompt_logprobs[1:]], abs=1e-6)
        assert "".join(choice.logprobs.tokens) == choice.text


def test_mixed_requests_with_disconnects_lose_and_cross_nothing(
    server: str, expected: dict[tuple[str, int], str]
) -> None:
    """500 requests, a third of them dropped at a random moment; every answer that arrives is exact."""
    counts = asyncio.run(storm(server, expected, 500))
    assert counts["exact"] >= 300
    assert counts["dropped"] >= 50
    until = time.monotonic() + 20
    while metric(server, "vllm:num_requests_running") or metric(server, "vllm:num_requests_waiting"):
        assert time.monotonic() < until, "requests are still running after everybody has left"
        time.sleep(0.2)
    time.sleep(1.0)
    assert metric(server, "fd_kv_blocks{", 'state="used"') == 0


async def storm(server: str, expected: dict[tuple[str, int], str], total: int) -> dict[str, int]:
    rng = random.Random(11)
    counts = {"exact": 0, "dropped": 0}
    gate = asyncio.Semaphore(40)
    async with httpx.AsyncClient(
        base_url=server, timeout=60, limits=httpx.Limits(max_connections=50)
    ) as client:
        jobs = [
            one(client, gate, rng.choice(list(expected)), rng.random(), expected, counts)
            for _ in range(total)
        ]
        await asyncio.gather(*jobs)
    return counts


async def one(
    client: httpx.AsyncClient,
    gate: asyncio.Semaphore,
    case: tuple[str, int],
    dice: float,
    expected: dict[tuple[str, int], str],
    counts: dict[str, int],
) -> None:
    prompt, tokens = case
    body: dict[str, Any] = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    async with gate:
        if dice < 0.35:
            try:
                await client.post("/v1/completions", json=body, timeout=0.0005 + dice / 100)
            except httpx.TimeoutException:
                counts["dropped"] += 1
                return
            return
        answer = await client.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["text"] == expected[case]
        counts["exact"] += 1


def metric(server: str, *parts: str) -> float:
    lines = httpx.get(f"{server}/metrics").text.splitlines()
    found = [line for line in lines if not line.startswith("#") and all(p in line for p in parts)]
    assert found, f"no metric {parts}"
    return float(found[0].rsplit(" ", 1)[1])
