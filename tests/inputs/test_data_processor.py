"""Request fields to sampling parameters, prompts to token ids, defaults of the model."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fd_core.engine.request import SamplingParams
from fd_core.serving.errors import RequestError
from fd_core.serving.inputs.defaults import GenerationDefaults
from fd_core.serving.inputs.guides import guide
from fd_core.serving.inputs.limits import Limits
from fd_core.serving.inputs.messages import plain_messages
from fd_core.serving.inputs.prompts import check_length, fit, split_prompts, truncated
from fd_core.serving.inputs.sampling import sampling_params
from fd_core.serving.inputs.text_model import TextModel
from fd_core.serving.protocol.chat import ContentPart, FunctionCall, Message, ToolCall
from fd_core.serving.protocol.common import (
    JsonSchemaFormat,
    ResponseFormat,
    SamplingFields,
    StructuredOutputs,
)
from fd_core.testkit.echo import toy_info

INFO, LIMITS = toy_info(), Limits()


def params(toy, max_tokens=None, **fields):
    return sampling_params(SamplingFields(**fields), toy, INFO, LIMITS, max_tokens=max_tokens)


def test_defaults_are_the_models(toy):
    defaults = GenerationDefaults(temperature=0.6, top_p=0.95, top_k=20, repetition_penalty=1.1)
    model = TextModel(toy.tokenizer, toy.template, defaults)
    found = params(model)
    assert (found.temperature, found.top_p, found.top_k, found.repetition_penalty) == (0.6, 0.95, 20, 1.1)
    asked = params(model, temperature=0.0, top_p=1.0, top_k=-1, repetition_penalty=1.0)
    assert (asked.temperature, asked.top_p, asked.top_k, asked.repetition_penalty) == (0.0, 1.0, 0, 1.0)


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({}, GenerationDefaults()),
        ({"temperature": 0.7, "eos_token_id": 3}, GenerationDefaults(temperature=0.7, eos_token_ids=(3,))),
        ({"do_sample": False, "temperature": 0.7}, GenerationDefaults(temperature=0.0)),
        (
            {"eos_token_id": [1, 2], "max_new_tokens": 9, "top_k": None},
            GenerationDefaults(eos_token_ids=(1, 2), max_tokens=9),
        ),
    ],
)
def test_generation_config(tmp_path, config, wanted):
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    assert GenerationDefaults.load(tmp_path) == wanted


def test_broken_generation_config():
    with pytest.raises(ValueError, match="temperature"):
        GenerationDefaults.parse({"temperature": "hot"})


@settings(max_examples=60, deadline=None)
@given(st.integers(-(2**63), 2**63 - 1))
def test_any_int64_is_a_seed(seed):
    from fd_core.serving.inputs.sampling import _seed

    assert 0 <= _seed(seed) < 2**63


def test_top_k_is_cut_to_the_vocabulary(toy):
    assert params(toy, top_k=10**9).top_k == INFO.vocab_size


def test_bad_words_come_with_and_without_space(toy):
    found = params(toy, bad_words=["the", "tree"]).bad_words
    texts = [toy.tokenizer.decode(list(ids)) for ids in found]
    assert texts == ["the", " the", "tree", " tree"]


def test_empty_stop_strings_are_ignored(toy):
    assert params(toy, stop=["", "x"]).stop == ("x",)
    assert params(toy, stop="").stop == ()


def test_logit_bias(toy):
    assert params(toy, logit_bias={"5": 1, "7": -100.0}).logit_bias == {5: 1.0, 7: -100.0}
    with pytest.raises(RequestError):
        params(toy, logit_bias={"٣": 1.0})


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, None),
        ({"response_format": ResponseFormat("text")}, None),
        ({"response_format": ResponseFormat("json_object")}, ("json", '{"type":"object"}')),
        (
            {"response_format": ResponseFormat("json_schema", JsonSchemaFormat(schema={"type": "null"}))},
            ("json", '{"type":"null"}'),
        ),
        ({"guided_json": '{"type": "string"}'}, ("json", '{"type":"string"}')),
        ({"guided_regex": "a+"}, ("regex", "a+")),
        ({"guided_choice": ["a", "b"]}, ("choice", '["a","b"]')),
        ({"guided_grammar": "start: X"}, ("grammar", "start: X")),
        ({"structured_outputs": StructuredOutputs(regex="b")}, ("regex", "b")),
        ({"structured_outputs": StructuredOutputs(json_object=True)}, ("json", '{"type":"object"}')),
    ],
)
def test_guides(fields, wanted):
    assert guide(SamplingFields(**fields), LIMITS) == wanted


def test_guide_depth():
    schema: dict = {}
    for _ in range(70):
        schema = {"not": schema}
    with pytest.raises(RequestError, match="nested"):
        guide(SamplingFields(guided_json=schema), LIMITS)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_prompt_forms(given, wanted):
    assert split_prompts(given) == wanted


@pytest.mark.parametrize("given", ["", [], [""], [[]], ["a", 1], [1, [2]], ["a", [1]]])
def test_bad_prompt_forms(given):
    with pytest.raises(RequestError) as caught:
        split_prompts(given)
    assert caught.value.param == "prompt"


def test_fit():
    room = INFO.max_model_len - 3
    assert fit("p", [1, 2, 3], SamplingParams(), None, INFO).max_tokens == room
    assert fit("p", [1, 2, 3], SamplingParams(), 10, INFO).max_tokens == 10
    assert fit("p", [1, 2, 3], SamplingParams(max_tokens=10**9), None, INFO).max_tokens == room
    late = fit("p", [1, 2, 3], SamplingParams(max_tokens=10**9, min_tokens=10**8), None, INFO)
    assert late.min_tokens == room
    full = [1] * INFO.max_model_len
    assert fit("p", full, SamplingParams(max_tokens=0), None, INFO).max_tokens == 0
    with pytest.raises(RequestError) as caught:
        fit("p", full, SamplingParams(), None, INFO)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(RequestError, match="at least one token"):
        fit("p", [], SamplingParams(), None, INFO)


def test_truncation_keeps_the_end():
    assert truncated([1, 2, 3], None, INFO) == [1, 2, 3]
    assert truncated([1, 2, 3], 2, INFO) == [2, 3]
    assert truncated([1] * 5000, -1, INFO) == [1] * (INFO.max_model_len - 1)


def test_long_text_is_refused_before_tokenising():
    check_length("p", 16 * INFO.max_model_len, INFO, LIMITS)
    with pytest.raises(RequestError):
        check_length("p", 16 * INFO.max_model_len + 1, INFO, LIMITS)


def test_messages():
    call = ToolCall(FunctionCall("f", '{"x": 1}'), "id1")
    found = plain_messages(
        [
            Message("developer", "be brief"),
            Message("user", [ContentPart("text", "a"), ContentPart("text", "b")], name="me"),
            Message("assistant", None, tool_calls=[call], reasoning="hm"),
            Message("tool", "1", tool_call_id="id1"),
            Message("tool", "2", tool_call_id="id2"),
        ],
        LIMITS,
    )
    assert found[0] == {"role": "system", "content": "be brief"}
    assert found[1] == {"role": "user", "content": "a\nb", "name": "me"}
    assert found[2]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": 1}}
    assert (found[2]["content"], found[2]["reasoning_content"]) == ("", "hm")
    assert found[4]["tool_call_id"] == "id2"
