"""The official client against a real server."""

from __future__ import annotations

import openai
import pytest

from fd_core.engine.request import EngineRequest, SamplingParams
from fd_core.serving.inputs.text_model import TextModel
from fd_core.testkit.echo import expected_tokens, logprob_of

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def text(folder):
    return TextModel.load(folder)


def predicted(text, ids, count, seed=None, index=0):
    """What the echo engine must say."""
    request = EngineRequest(request_id="x", prompt_token_ids=ids, params=SamplingParams(seed=seed))
    return text.tokenizer.decode(expected_tokens(request, index, count))


def test_chat(client, text):
    answer = client.chat.completions.create(model="toy", messages=HELLO, max_tokens=9, seed=3)
    ids = text.chat_prompt(HELLO).token_ids
    assert answer.choices[0].message.content == predicted(text, ids, 9, seed=3)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "length"
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(ids), 9)
    assert answer.usage.total_tokens == len(ids) + 9


def test_chat_stream_equals_whole(client):
    options = {"model": "toy", "messages": HELLO, "max_completion_tokens": 40, "seed": 3, "n": 3}
    whole = client.chat.completions.create(**options)
    texts, roles, reasons, last = ["", "", ""], [None] * 3, [None] * 3, None
    for chunk in client.chat.completions.create(
        **options, stream=True, stream_options={"include_usage": True}
    ):
        last = chunk
        for choice in chunk.choices:
            assert chunk.usage is None
            texts[choice.index] += choice.delta.content or ""
            roles[choice.index] = roles[choice.index] or choice.delta.role
            reasons[choice.index] = reasons[choice.index] or choice.finish_reason
    assert texts == [c.message.content for c in whole.choices]
    assert len(set(texts)) == 3
    assert roles == ["assistant"] * 3
    assert reasons == ["length"] * 3
    assert last.choices == []
    assert last.usage.completion_tokens == 120 == whole.usage.completion_tokens


def test_continuous_usage(client):
    chunks = client.chat.completions.create(
        model="toy",
        messages=HELLO,
        max_tokens=5,
        stream=True,
        stream_options={"include_usage": True, "continuous_usage_stats": True},
    )
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 5


def test_chat_logprobs(client):
    answer = client.chat.completions.create(
        model="toy", messages=HELLO, max_tokens=6, logprobs=True, top_logprobs=3
    )
    entries = answer.choices[0].logprobs.content
    assert "".join(e.token for e in entries) == answer.choices[0].message.content
    for entry in entries:
        wanted = logprob_of(entry.bytes[0], 3)
        assert entry.logprob == wanted.logprob
        assert [t.logprob for t in entry.top_logprobs] == wanted.top_logprobs
        assert entry.top_logprobs[0].token == entry.token


def test_chat_logprobs_stream(client):
    chunks = client.chat.completions.create(
        model="toy", messages=HELLO, max_tokens=6, logprobs=True, stream=True, stop=["zzz"]
    )
    entries, content = [], ""
    for chunk in chunks:
        choice = chunk.choices[0]
        content += choice.delta.content or ""
        entries += choice.logprobs.content if choice.logprobs else []
    assert "".join(e.token for e in entries) == content
    assert len(entries) == 6
    assert entries[0].top_logprobs == []


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_stop_string(client, text, include, stream):
    ids = text.chat_prompt(HELLO).token_ids
    full = predicted(text, ids, 60)
    stop = full[20:24]  # spans four tokens of one letter
    answer = client.chat.completions.create(
        model="toy",
        messages=HELLO,
        max_tokens=60,
        stop=["not there", stop],
        stream=stream,
        extra_body={"include_stop_str_in_output": include},
    )
    wanted = full[: full.index(stop) + (len(stop) if include else 0)]
    if stream:
        pieces = [c.choices[0] for c in answer]
        assert "".join(p.delta.content or "" for p in pieces) == wanted
        assert pieces[-1].finish_reason == "stop"
        return
    assert answer.choices[0].message.content == wanted
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].stop_reason == stop
    assert answer.usage.completion_tokens == full.index(stop) + len(stop)


def test_stop_token_and_min_tokens(client, text):
    ids = text.tokenizer.encode("once")
    full = predicted(text, ids, 60)
    stop = ord(full[12])
    options = {"model": "toy", "prompt": "once", "max_tokens": 60}
    answer = client.completions.create(**options, extra_body={"stop_token_ids": [stop]})
    assert answer.choices[0].text == full[: full.index(full[12])]
    assert answer.choices[0].stop_reason == stop
    later = client.completions.create(
        **options, extra_body={"stop_token_ids": [stop], "min_tokens": full.index(full[12]) + 1}
    )
    assert len(later.choices[0].text) > full.index(full[12])


def test_seed(client):
    def say(seed):
        answer = client.completions.create(model="toy", prompt="dice", max_tokens=20, seed=seed)
        return answer.choices[0].text

    assert say(1) == say(1) != say(2)
    assert say(-5) == say(-5)


def test_completion_forms(client, text):
    """One text, its ids, and both forms in lists give the same words."""
    ids = text.tokenizer.encode("abc")
    wanted = predicted(text, ids, 16)
    for prompt in ("abc", ids, ["abc"], [ids]):
        answer = client.completions.create(model="toy", prompt=prompt)
        assert [c.text for c in answer.choices] == [wanted]


def test_completion_batch(client, text):
    prompts = ["one", "two", "three"]
    answer = client.completions.create(model="toy", prompt=prompts, n=2, max_tokens=7, seed=1)
    wanted = [predicted(text, text.tokenizer.encode(p), 7, 1, i) for p in prompts for i in (0, 1)]
    assert [c.text for c in answer.choices] == wanted
    assert [c.index for c in answer.choices] == list(range(6))
    assert answer.usage.completion_tokens == 42
    parts = [""] * 6
    for chunk in client.completions.create(
        model="toy", prompt=prompts, n=2, max_tokens=7, seed=1, stream=True
    ):
        for choice in chunk.choices:
            parts[choice.index] += choice.text
    assert parts == wanted


def test_echo_and_logprobs(client, text):
    ids = text.tokenizer.encode("the thin")
    answer = client.completions.create(model="toy", prompt="the thin", max_tokens=4, echo=True, logprobs=2)
    choice = answer.choices[0]
    assert choice.text == "the thin" + predicted(text, ids, 4)
    assert "".join(choice.logprobs.tokens) == choice.text
    assert choice.logprobs.token_logprobs[0] is None
    assert len(choice.logprobs.token_logprobs) == len(ids) + 4
    for token, offset in zip(choice.logprobs.tokens, choice.logprobs.text_offset, strict=True):
        assert choice.text[offset : offset + len(token)] == token
    for token, top in zip(choice.logprobs.tokens[1:], choice.logprobs.top_logprobs[1:], strict=True):
        assert max(top, key=top.get) == token


def test_scoring_without_generation(client, text):
    """What evaluation harnesses ask for: max_tokens 0 with echo and log-probabilities."""
    ids = text.tokenizer.encode("score me")
    answer = client.completions.create(model="toy", prompt=[ids], max_tokens=0, echo=True, logprobs=1)
    assert answer.choices[0].text == "score me"
    assert answer.usage.completion_tokens == 0
    wanted = [None, *(logprob_of(i, 1).logprob for i in ids[1:])]
    assert answer.choices[0].logprobs.token_logprobs == wanted


def test_echo_stream(client, text):
    chunks = list(
        client.completions.create(
            model="toy", prompt="abc", max_tokens=5, echo=True, logprobs=0, stream=True
        )
    )
    assert "".join(c.choices[0].text for c in chunks) == "abc" + predicted(
        text, text.tokenizer.encode("abc"), 5
    )
    offsets = [o for c in chunks if c.choices[0].logprobs for o in c.choices[0].logprobs.text_offset]
    assert offsets == list(range(8))


def test_prompt_logprobs(client):
    answer = client.completions.create(
        model="toy", prompt="abc", max_tokens=2, extra_body={"prompt_logprobs": 1}
    )
    found = answer.choices[0].prompt_logprobs
    assert found[0] is None
    assert found[1][str(ord("b"))]["decoded_token"] == "b"


def test_models(client):
    listed = client.models.list().data
    assert [m.id for m in listed] == ["toy"]
    assert listed[0].max_model_len == 2048
    assert client.models.retrieve("toy").id == "toy"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_errors_reach_the_client(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="toy", messages=HELLO, temperature=5)
    assert caught.value.body["param"] == "temperature"
    assert "0..2" in caught.value.body["message"]
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gone", messages=HELLO)
    assert missing.value.body["code"] == "model_not_found"


def test_absent_max_tokens_is_the_room_left(start):
    server = start(engine_options={"info": None})
    server.engine.info.max_model_len = 64
    with server.client() as client:
        answer = client.chat.completions.create(model="toy", messages=HELLO)
        assert answer.usage.total_tokens == 64
        longer = client.chat.completions.create(model="toy", messages=HELLO, max_tokens=1000)
        assert longer.usage.total_tokens == 64
        assert longer.choices[0].finish_reason == "length"


def test_token_ids_and_unicode(start, text):
    wanted = "naïve 🚀 你好 é"
    ids = text.tokenizer.encode(wanted)
    server = start(engine_options={"script": lambda request, index: ids})
    with server.client() as client:
        answer = client.chat.completions.create(
            model="toy", messages=HELLO, extra_body={"return_token_ids": True}
        )
        assert answer.choices[0].message.content == wanted
        assert answer.choices[0].finish_reason == "stop"
        assert answer.choices[0].token_ids[:-1] == ids
        chunks = client.chat.completions.create(model="toy", messages=HELLO, stream=True)
        pieces = [c.choices[0].delta.content or "" for c in chunks]
    assert "".join(pieces) == wanted
    assert not any("\ufffd" in p for p in pieces)
    assert "🚀" in pieces
