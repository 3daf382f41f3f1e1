"""Incremental text: no character cut, nothing lost, stop strings wherever they lie."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fd_core.engine.request import (
    EngineOutput,
    EngineRequest,
    FinishReason,
    SamplingParams,
    TokenLogprobs,
)
from fd_core.serving.inputs.detokenizer import Detokenizer
from fd_core.serving.inputs.stop import StopMatcher
from fd_core.serving.inputs.tokenizer import TextTokenizer
from fd_core.serving.outputs import OutputProcessor
from fd_core.testkit.toy_text import EOS, tokenizer_json

TOKENIZER = TextTokenizer(tokenizer_json())
LETTERS = st.text(alphabet="ab c", max_size=30)


def reference(text: str, stops, include: bool) -> str:
    """The earliest complete match, found letter by letter on the whole text."""
    for end in range(1, len(text) + 1):
        ending = [s for s in stops if s and text[:end].endswith(s)]
        if ending:
            longest = max(ending, key=len)
            return text[:end] if include else text[: end - len(longest)]
    return text


@settings(max_examples=300, deadline=None)
@given(
    LETTERS,
    st.lists(st.text(alphabet="ab c", min_size=1, max_size=4), max_size=3),
    st.booleans(),
    st.data(),
)
def test_stop_strings_do_not_depend_on_the_cuts(text, stops, include, data):
    matcher, shown, rest = StopMatcher(stops, include), "", text
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        shown += matcher.feed(rest[:size])
        assert reference(text, stops, include).startswith(shown)
        rest = rest[size:]
    if matcher.matched is None:
        shown += matcher.flush()
    assert shown == reference(text, stops, include)


def test_only_a_possible_beginning_is_held_back():
    matcher = StopMatcher(["STOP"])
    assert matcher.feed("go ST") == "go "
    assert matcher.feed("A") == "STA"
    assert matcher.feed("STO") == ""
    assert matcher.feed("P now") == ""
    assert matcher.matched == "STOP"


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=st.sampled_from("aé你🚀\u200d\n the")))
def test_pieces_join_to_the_text(text):
    ids = TOKENIZER.encode(text)
    detokenizer = Detokenizer(TOKENIZER)
    pieces = [detokenizer.feed([token]) for token in ids]
    pieces.append(detokenizer.finish())
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert detokenizer.num_tokens == len(ids)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 255), max_size=60))
def test_any_bytes(tokens):
    """Bytes that are no UTF-8 come out as replacement characters, and soon."""
    detokenizer = Detokenizer(TOKENIZER)
    shown = "".join(detokenizer.feed([t]) for t in tokens) + detokenizer.finish()
    assert shown.replace("\ufffd", "") == bytes(tokens).decode("utf-8", "ignore") or len(tokens) > 16
    assert len(detokenizer._decoder._window) <= 40


def test_broken_bytes_do_not_wait_for_ever():
    detokenizer = Detokenizer(TOKENIZER)
    shown = [detokenizer.feed([0x80]) for _ in range(40)]
    assert any(shown)


def test_text_goes_on_where_the_prompt_ends():
    """The first token's text has its left context; a cut character in the prompt is not repeated."""
    prompt = TOKENIZER.encode("you 你")
    detokenizer = Detokenizer(TOKENIZER, prompt)
    assert detokenizer.feed(TOKENIZER.encode("好")) == "好"
    cut = Detokenizer(TOKENIZER, prompt[:-1])
    assert cut.feed(TOKENIZER.encode("ab")) == "ab"


def test_special_tokens():
    shown = Detokenizer(TOKENIZER, skip_special_tokens=False)
    hidden = Detokenizer(TOKENIZER)
    tokens = [*b"ab", EOS, *b"cd"]
    assert hidden.feed(tokens) == "abcd"
    assert shown.feed(tokens) == "ab<|im_end|>cd"


def test_min_tokens_delays_stop_strings():
    detokenizer = Detokenizer(TOKENIZER, stop=["b"], min_tokens=3)
    assert detokenizer.feed(b"abcabc") == "abca"
    assert detokenizer.stopped == "b"
    assert detokenizer.num_tokens == 5


def request(**params):
    return EngineRequest(request_id="r", prompt_token_ids=[1, 2], params=SamplingParams(**params))


def output(tokens, **fields):
    logprobs = [TokenLogprobs(-1.0, 1, [], []) for _ in tokens]
    return EngineOutput(request_id="r", token_ids=list(tokens), logprobs=logprobs, **fields)


def test_stop_string_inside_a_message():
    """Tokens and log-probabilities behind the match are dropped and not counted."""
    processor = OutputProcessor(request(stop=("c",)), TOKENIZER)
    delta = processor.process(output(b"abcde"))
    assert (delta.text, delta.token_ids, len(delta.logprobs)) == ("ab", [97, 98, 99], 3)
    assert (delta.finish_reason, delta.stop_reason) == (FinishReason.STOP, "c")
    assert processor.done
    assert processor.num_output_tokens == 3
    assert processor.process(output(b"more")) is None


@pytest.mark.parametrize(("include", "text"), [(False, "ab"), (True, "ab.")])
def test_stop_token(include, text):
    processor = OutputProcessor(
        request(stop_token_ids=(46,), include_stop_str_in_output=include), TOKENIZER
    )
    delta = processor.process(output(b"ab.", finish_reason=FinishReason.STOP, stop_token_id=46))
    assert delta.text == text
    assert delta.token_ids == [*b"ab."]
    assert delta.stop_reason == 46
    assert processor.num_output_tokens == 3


def test_end_of_text_is_no_stop_reason():
    processor = OutputProcessor(request(), TOKENIZER)
    delta = processor.process(output([97, EOS], finish_reason=FinishReason.STOP, stop_token_id=EOS))
    assert (delta.text, delta.stop_reason, len(delta.token_ids)) == ("a", None, 2)


def test_held_text_comes_at_the_end():
    processor = OutputProcessor(request(stop=("xyz",)), TOKENIZER)
    assert processor.process(output(b"axy")).text == "a"
    assert processor.process(output([], finish_reason=FinishReason.LENGTH)).text == "xy"


def test_scoring_shows_no_token():
    """`max_tokens` 0: nothing is generated, whatever the engine sampled on the way."""
    processor = OutputProcessor(request(max_tokens=0), TOKENIZER)
    delta = processor.process(output(b"a", finish_reason=FinishReason.LENGTH))
    assert (delta.text, delta.token_ids, delta.logprobs) == ("", [], [])
    assert processor.done
    assert processor.num_output_tokens == 0


def test_completions_are_apart():
    processor = OutputProcessor(request(n=2, stop=("b",)), TOKENIZER)
    assert processor.process(output(b"ab", index=1)).finish_reason is FinishReason.STOP
    assert not processor.done
    assert processor.process(output(b"ac", index=0, finish_reason=FinishReason.LENGTH)).text == "ac"
    assert processor.done
