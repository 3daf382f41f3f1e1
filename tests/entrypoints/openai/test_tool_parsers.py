"""Tool calls in text: streamed pieces join to the whole call."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fd_core.serving.inputs.tokenizer import TextTokenizer
from fd_core.serving.tools import HermesToolParser, ToolParserManager
from fd_core.serving.tools.base import joined_calls
from fd_core.serving.tools.forced import NamedCallStream, RequiredCallStream
from fd_core.testkit.toy_text import tokenizer_json

HERMES = HermesToolParser(TextTokenizer(tokenizer_json()))
A = '{"name": "f", "arguments": {"x": [1, {"y": "}\\" ]"}], "z": "</tool_call>"}}'
B = '{"name": "g", "arguments": {}}'
CASES = [
    ("just text", "just text", []),
    (f"<tool_call>\n{A}\n</tool_call>", None, [("f", A)]),
    (
        f"I look.\n<tool_call>{A}</tool_call>\n<tool_call>\n{B}\n</tool_call>",
        "I look.",
        [("f", A), ("g", B)],
    ),
    (f"<tool_call>{A}", None, [("f", A)]),
    ("a < b <tool> c", "a < b <tool> c", []),
    (
        '<tool_call>{"arguments": {"x": 1}, "name": "late"}</tool_call>',
        None,
        [("late", '{"arguments": {"x": 1}}')],
    ),
    ("<tool_call>{broken}</tool_call> after", "<tool_call>{broken}</tool_call> after", []),
    ('<tool_call>{"name": "f", "argu', '<tool_call>{"name": "f", "argu', []),
    ("text with an end \n", "text with an end \n", []),
]


def collected(stream, text, cut):
    """(content, calls) of a text fed in pieces."""
    content, pieces = "", []
    while text:
        size = cut(len(text))
        news = stream.feed(text[:size])
        content, pieces, text = content + news.content, pieces + news.calls, text[size:]
    news = stream.finish()
    return content + news.content, joined_calls(pieces + news.calls)


def check(content, calls, wanted_content, wanted_calls):
    assert (content or None) == wanted_content
    assert [c.function.name for c in calls] == [name for name, _ in wanted_calls]
    for call, (_, source) in zip(calls, wanted_calls, strict=True):
        assert json.loads(call.function.arguments) == json.loads(source)["arguments"]
        assert call.id.startswith("call_")


@pytest.mark.parametrize(("text", "content", "calls"), CASES)
def test_whole(text, content, calls):
    found = HERMES.extract_tool_calls(text)
    assert found.tools_called == bool(calls)
    check(found.content, found.tool_calls, content, calls)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(CASES), st.data())
def test_pieces_equal_the_whole(case, data):
    text, content, calls = case
    found = collected(HERMES.stream(), text, lambda size: data.draw(st.integers(1, size)))
    check(*found, content, calls)


def test_arguments_stream_early():
    """Arguments flow while the model writes them, before the call is complete."""
    stream = HERMES.stream()
    assert stream.feed('<tool_call>{"name": "f", ').calls == []
    begin = stream.feed('"arguments": {"x').calls
    assert begin[0].function.name == "f"
    assert begin[1].function.arguments == '{"x'
    assert stream.feed('": 1').calls[0].function.arguments == '": 1'
    assert stream.feed("}}").calls[0].function.arguments == "}"
    assert stream.feed("</tool_call>").calls == []


def test_required_and_named():
    text = f"[{A}, {B}]"
    for size in (1, 3, 1000):
        content, calls = collected(RequiredCallStream(), text, lambda left, size=size: min(size, left))
        check(content, calls, None, [("f", A), ("g", B)])
        content, calls = collected(
            NamedCallStream("f"), '{"x": 1}', lambda left, size=size: min(size, left)
        )
        assert (calls[0].function.name, calls[0].function.arguments) == ("f", '{"x": 1}')


def test_long_hostile_text_is_linear():
    text = "<tool_call>{" + '"name": "' + '\\"' * 50_000
    content, calls = collected(HERMES.stream(), text, lambda left: min(1000, left))
    assert (content, calls) == (text, [])


def test_names_on_offer():
    assert {"hermes", "qwen"} <= set(ToolParserManager.names())


# --- through the server -------------------------------------------------------------------------------

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
HELLO = [{"role": "user", "content": "weather?"}]
ANSWER = (
    "<think>I need it</think>Let me see.\n"
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Łódź"}}\n</tool_call>'
)


@pytest.fixture(scope="module")
def scripted(start_for_module):
    tokenizer = TextTokenizer(tokenizer_json())

    def script(request, index):
        guided = request.params.guided
        if guided is None:
            return tokenizer.encode_template(ANSWER)
        array = '"array"' in guided[1]
        return tokenizer.encode(
            '[{"name": "weather", "arguments": {"city": "X"}}]' if array else '{"city": "X"}'
        )

    return start_for_module(engine_options={"script": script})


def test_tools_and_reasoning_whole(scripted):
    with scripted.client() as client:
        answer = client.chat.completions.create(model="toy", messages=HELLO, tools=TOOLS)
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me see."
    assert choice.message.reasoning_content == "I need it"
    assert choice.message.tool_calls[0].function.name == "weather"
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"city": "Łódź"}


def test_tools_and_reasoning_streamed(scripted):
    content = reasoning = arguments = ""
    names, ids, reason = [], [], None
    with scripted.client() as client:
        for chunk in client.chat.completions.create(model="toy", messages=HELLO, tools=TOOLS, stream=True):
            delta = chunk.choices[0].delta
            content += delta.content or ""
            reasoning += getattr(delta, "reasoning_content", None) or ""
            for call in delta.tool_calls or []:
                names += [call.function.name] if call.function.name else []
                ids += [call.id] if call.id else []
                arguments += call.function.arguments or ""
            reason = chunk.choices[0].finish_reason or reason
    assert (content, reasoning, reason) == ("Let me see.", "I need it", "tool_calls")
    assert (names, len(ids)) == (["weather"], 1)
    assert json.loads(arguments) == {"city": "Łódź"}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
@pytest.mark.parametrize("stream", [False, True])
def test_forced_calls(scripted, choice, stream):
    with scripted.client() as client:
        answer = client.chat.completions.create(
            model="toy", messages=HELLO, tools=TOOLS, tool_choice=choice, stream=stream
        )
        if not stream:
            calls = answer.choices[0].message.tool_calls
            assert json.loads(calls[0].function.arguments) == {"city": "X"}
            assert answer.choices[0].finish_reason == "tool_calls"
            assert answer.choices[0].message.content is None
            return
        pieces = [c for chunk in answer for c in chunk.choices[0].delta.tool_calls or []]
    assert pieces[0].function.name == "weather"
    assert json.loads("".join(p.function.arguments or "" for p in pieces)) == {"city": "X"}


def test_tool_choice_none(scripted):
    with scripted.client() as client:
        answer = client.chat.completions.create(
            model="toy", messages=HELLO, tools=TOOLS, tool_choice="none"
        )
    assert "<tool_call>" in answer.choices[0].message.content
    assert answer.choices[0].message.tool_calls is None


def test_without_a_parser_tools_are_refused(start):
    import openai

    server = start(tool_call_parser="none", reasoning_parser="none")
    with server.client() as client, pytest.raises(openai.BadRequestError, match="--tool-call-parser"):
        client.chat.completions.create(model="toy", messages=HELLO, tools=TOOLS)


def test_tool_results_go_back(scripted):
    history = [
        *HELLO,
        {
            "role": "assistant",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    with scripted.client() as client:
        assert client.chat.completions.create(model="toy", messages=history, tools=TOOLS).choices
