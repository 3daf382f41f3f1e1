"""Reasoning and answer: whole and in pieces give the same split; the registry's contract."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fd_core.serving.inputs.tokenizer import TextTokenizer
from fd_core.serving.reasoning import (
    OpenThinkParser,
    Qwen3ReasoningParser,
    ReasoningParser,
    ReasoningParserManager,
)
from fd_core.serving.reasoning.base import ReasoningStream
from fd_core.serving.registry import ParserRegistry
from fd_core.testkit.toy_text import tokenizer_json

TOKENIZER = TextTokenizer(tokenizer_json())
QWEN = Qwen3ReasoningParser(TOKENIZER)
CASES = [
    ("<think>\nwhy\n</think>\n\nbecause", "why", "because"),
    ("\n<think>why</think>because", "why", "because"),
    ("<think>why", "why", None),
    ("<think></think>because", None, "because"),
    ("<think>\n\n</think>\n\nbecause", None, "because"),
    ("because", None, "because"),
    ("  spaced ", None, "  spaced "),
    ("a <think>no</think>", None, "a <think>no</think>"),
    ("<think>a < b </thin> c</think>yes", "a < b </thin> c", "yes"),
    ("<think>a\n\nb</think>c\n", "a\n\nb", "c\n"),
    ("", None, None),
]


@pytest.mark.parametrize(("text", "reasoning", "content"), CASES)
def test_whole(text, reasoning, content):
    assert QWEN.extract_reasoning_content(text) == (reasoning, content)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([c[0] for c in CASES]), st.data())
def test_pieces_equal_the_whole(text, data):
    stream, reasoning, content, rest = QWEN.stream(), "", "", text
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        more, said = stream.feed(rest[:size])
        reasoning, content, rest = reasoning + more, content + said, rest[size:]
    more, said = stream.finish()
    assert (reasoning + more or None, content + said or None) == QWEN.extract_reasoning_content(text)


def test_end_tag_alone():
    """The template opened the reasoning."""
    assert QWEN.extract_reasoning_content("why</think>because") == ("why", "because")
    stream = QWEN.stream("<|im_start|>assistant\n<think>\n")
    assert stream.feed("why</think>because") == ("why", "because")
    always = OpenThinkParser(TOKENIZER).stream()
    assert always.feed("why</th") == ("why", "")
    assert always.feed("ink>because") == ("", "because")


def test_streaming_method():
    """The six-argument form: nothing while a tag may be incomplete, then its part."""

    def news(previous, delta):
        return QWEN.extract_reasoning_content_streaming(previous, previous + delta, delta, [], [], [])

    assert news("", "<thi") is None
    assert news("<thi", "nk>") is None
    assert news("<think>", "why").reasoning_content == "why"
    assert news("<think>why", "</think>") is None
    both = news("<think>wh", "y</think>so")
    assert (both.reasoning_content, both.content) == ("y", "so")


def test_token_ids():
    ids = TOKENIZER.encode_template("<think>a</think>bc")
    assert QWEN.is_reasoning_end(ids)
    assert not QWEN.is_reasoning_end(ids[:-3])
    assert TOKENIZER.decode(QWEN.extract_content_ids(ids)) == "bc"
    assert QWEN.extract_content_ids(ids[:2]) == []


class Plain(ReasoningParser):
    def is_reasoning_end(self, ids):
        return True

    def extract_content_ids(self, ids):
        return list(ids)

    def stream(self, prompt=""):
        class Nothing(ReasoningStream):
            def feed(self, text):
                return "", text

            def finish(self):
                return "", ""

        return Nothing()


@pytest.fixture
def registry():
    return ParserRegistry("reasoning", ReasoningParser)


def test_registry(registry):
    assert registry.register_module("my_parser", module=Plain) is Plain
    assert registry.get("my-parser") is Plain is registry.get("My_Parser")
    registry.register_module(module=Plain)
    assert registry.get("plain") is Plain

    @registry.register_module(["a", "b"])
    class Other(Plain):
        pass

    assert registry.get("a") is registry.get("b") is Other
    assert registry.names() == ["a", "b", "my-parser", "plain"]


def test_registry_refusals(registry):
    registry.register_module("x", module=Plain)
    with pytest.raises(KeyError, match="registered already"):
        registry.register_module("x", force=False, module=Plain)
    for options in ({"force": 1}, {"name": 5}, {"name": []}, {"name": [1]}, {"name": "y", "module": int}):
        with pytest.raises(TypeError):
            registry.register_module(**{"module": Plain, **options})
    with pytest.raises(KeyError, match="want one of x, found 'z'"):
        registry.get("z")


def test_plugin_parsers(registry):
    registry.add_all({"theirs": Plain})
    assert registry.get("theirs") is Plain
    with pytest.raises(KeyError):
        registry.add_all({"theirs": Plain})


def test_names_on_offer():
    assert {"qwen3", "think", "deepseek-r1"} <= set(ReasoningParserManager.names())
