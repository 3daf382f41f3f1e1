"""The embedded model through our own engine: how well it predicts text it has not seen."""

from __future__ import annotations

import math

import pytest

from fd_core.engine.build import EMBEDDED
from fd_core.llm import LLM, SamplingParams

WINDOW = 1024
END_OF_TEXT = 0


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(enable_prefix_caching=False)


def test_held_out_bits_per_byte(llm: LLM) -> None:
    """Disjoint windows over the held-out sample, each token scored once: at most 1.6 bits per byte."""
    text = (EMBEDDED / "heldout.txt").read_text(encoding="utf-8")[:40_000]
    ids = llm.tokenizer.encode(text)
    windows = [[END_OF_TEXT, *ids[i : i + WINDOW]] for i in range(0, len(ids), WINDOW)]
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    results = llm.generate(windows, params)
    scores = [p.logprob for r in results for p in r.prompt_logprobs or [] if p is not None]
    assert len(scores) == len(ids)
    bits = -sum(scores) / math.log(2) / len(text.encode())
    assert bits <= 1.6
    assert bits > 0.5, "suspiciously good: is the text really held out?"


def test_generation_repeats_itself_for_the_same_seed(llm: LLM) -> None:
    params = SamplingParams(max_tokens=40, temperature=0.8, top_p=0.95, seed=5)
    first, second = (llm.generate("The server", params)[0].text for _ in range(2))
    assert first == second
    other = llm.generate("The server", SamplingParams(max_tokens=40, temperature=0.8, top_p=0.95, seed=6))[
        0
    ].text
    assert other != first


@pytest.mark.parametrize("prompts", [[], [[]], {"text": "x"}, [1.5]])
def test_prompts_that_make_no_sense_are_refused(llm: LLM, prompts: object) -> None:
    with pytest.raises((ValueError, TypeError), match="prompt"):
        llm.generate(prompts)


def test_every_input_form_gives_the_same_answer(llm: LLM) -> None:
    params = SamplingParams(max_tokens=8, temperature=0.0)
    ids = llm.tokenizer.encode("A list is")
    forms = ["A list is", ["A list is"], ids, [ids], {"prompt": "A list is"}, [{"prompt": ids}]]
    answers = {llm.generate(form, params)[0].text for form in forms}
    assert len(answers) == 1
    with pytest.raises(ValueError, match="sampling_params"):
        llm.generate(["a", "b"], [params])


def test_streaming_adds_up_to_the_whole(llm: LLM) -> None:
    params = [SamplingParams(max_tokens=n, temperature=0.0, n=1) for n in (3, 12)]
    whole = [r.text for r in llm.generate(["A list is", "A tuple is"], params)]
    pieces = ["", ""]
    for news in llm.generate(["A list is", "A tuple is"], params, stream=True):
        assert len(news) == 2
        for i, output in enumerate(news):
            pieces[i] += output.text if output is not None else ""
    assert pieces == whole


def test_stop_strings_end_one_completion_and_free_its_blocks(llm: LLM) -> None:
    params = SamplingParams(max_tokens=200, temperature=0.0, ignore_eos=True)
    text = llm.generate("To install the package,", params)[0].text
    word = text[10:18]
    cut = llm.generate(
        "To install the package,",
        SamplingParams(max_tokens=200, temperature=0.0, ignore_eos=True, stop=(word,)),
    )[0]
    assert cut.text == text[: text.index(word)]
    assert cut.outputs[0].finish_reason == "stop"
    stats = llm.engine.stats()
    assert stats.blocks_free + stats.blocks_cached == stats.blocks_total


def test_chat_answers_one_conversation_and_several(llm: LLM) -> None:
    params = SamplingParams(max_tokens=30, temperature=0.0)
    question = [{"role": "user", "content": "Who are you?"}]
    (one,) = llm.chat(question, params)
    several = llm.chat([question, question], params)
    assert [r.text for r in several] == [one.text] * 2


def test_scoring_alone_generates_nothing(llm: LLM) -> None:
    (result,) = llm.generate(["A list is"], SamplingParams(max_tokens=0, prompt_logprobs=0))
    assert result.outputs[0].token_ids == []
    assert result.outputs[0].finish_reason == "length"
    assert result.prompt_logprobs is not None
    assert len(result.prompt_logprobs) == len(result.prompt_token_ids)
