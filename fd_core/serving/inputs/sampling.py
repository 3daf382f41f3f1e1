"""Request fields to `SamplingParams`, every bound checked."""

from __future__ import annotations

from fd_core.engine.request import ModelInfo, SamplingParams
from fd_core.serving.errors import RequestError
from fd_core.serving.inputs.guides import guide
from fd_core.serving.inputs.limits import (
    Limits,
    at_most,
    integer,
    number,
    refuse,
    text_bytes,
    token_ids,
)
from fd_core.serving.inputs.text_model import TextModel
from fd_core.serving.protocol.common import SamplingFields

INT64 = 1 << 63
MAX_TEMPERATURE = 2.0


def sampling_params(
    fields: SamplingFields,
    text: TextModel,
    info: ModelInfo,
    limits: Limits,
    *,
    max_tokens: int | None,
    logprobs: int | None = None,
    scoring: bool = False,
) -> SamplingParams:
    """`max_tokens` as the request names it; `scoring` (echo with logprobs) makes 0 legal.

    The room left in the model's context is applied later, by `fit`, when the prompt is known.
    """
    defaults = text.defaults
    low = 0 if scoring else 1
    budget = integer("max_tokens", max_tokens, low, INT64 - 1, -1)
    most = limits.max_logprobs if info.max_logprobs < 0 else min(limits.max_logprobs, info.max_logprobs)
    return SamplingParams(
        max_tokens=None if budget < 0 else budget,
        min_tokens=_min_tokens(fields, budget),
        temperature=number("temperature", fields.temperature, 0, MAX_TEMPERATURE, defaults.temperature),
        top_p=number("top_p", fields.top_p, 0, 1, defaults.top_p),
        top_k=_top_k(fields.top_k, defaults.top_k, info.vocab_size),
        min_p=number("min_p", fields.min_p, 0, 1, defaults.min_p),
        repetition_penalty=_repetition(fields.repetition_penalty, defaults.repetition_penalty),
        frequency_penalty=number("frequency_penalty", fields.frequency_penalty, -2, 2, 0.0),
        presence_penalty=number("presence_penalty", fields.presence_penalty, -2, 2, 0.0),
        seed=_seed(fields.seed),
        stop=_stop(fields.stop, limits),
        stop_token_ids=_stop_ids(fields, info, limits),
        include_stop_str_in_output=fields.include_stop_str_in_output,
        ignore_eos=fields.ignore_eos,
        bad_words=_bad_words(fields.bad_words, text, limits),
        allowed_token_ids=_allowed(fields.allowed_token_ids, info),
        logit_bias=_logit_bias(fields.logit_bias, info, limits),
        logprobs=None if logprobs is None else integer("logprobs", logprobs, 0, most, 0),
        prompt_logprobs=_optional("prompt_logprobs", fields.prompt_logprobs, most),
        n=_n(fields, limits),
        skip_special_tokens=fields.skip_special_tokens,
        guided=guide(fields, limits),
    )


def _optional(param: str, value: int | None, most: int) -> int | None:
    return None if value is None else integer(param, value, 0, most, 0)


def _min_tokens(fields: SamplingFields, budget: int) -> int:
    least = integer("min_tokens", fields.min_tokens, 0, INT64 - 1, 0)
    if 0 <= budget < least:
        raise refuse("min_tokens", f"at most max_tokens ({budget})", least)
    return least


def _top_k(value: int | None, default: int, vocab_size: int) -> int:
    found = integer("top_k", value, -1, INT64 - 1, default)
    return 0 if found <= 0 else min(found, vocab_size)


def _repetition(value: float | None, default: float) -> float:
    found = number("repetition_penalty", value, 0, 10, default)
    if found <= 0:
        raise refuse("repetition_penalty", "a number above 0, at most 10", found)
    return found


def _seed(value: int | None) -> int | None:
    """Any int64; negative ones fold onto the 63 bits that the engine takes."""
    if value is None:
        return None
    return integer("seed", value, -INT64, INT64 - 1, 0) & (INT64 - 1)


def _stop(value: str | list[str] | None, limits: Limits) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value or []
    at_most("stop", stops, limits.max_stop)
    return tuple(text_bytes("stop", s, limits.max_stop_bytes) for s in stops if s)


def _stop_ids(fields: SamplingFields, info: ModelInfo, limits: Limits) -> tuple[int, ...]:
    ids = fields.stop_token_ids or []
    at_most("stop_token_ids", ids, limits.max_stop_token_ids)
    return token_ids("stop_token_ids", ids, info.vocab_size)


def _allowed(ids: list[int] | None, info: ModelInfo) -> tuple[int, ...] | None:
    if ids is None:
        return None
    at_most("allowed_token_ids", ids, info.vocab_size)
    if not ids:
        raise refuse("allowed_token_ids", "at least one token id", ids)
    return token_ids("allowed_token_ids", ids, info.vocab_size)


def _logit_bias(given: dict[str, float] | None, info: ModelInfo, limits: Limits) -> dict[int, float]:
    at_most("logit_bias", given or {}, limits.max_logit_bias)
    found: dict[int, float] = {}
    for key, value in (given or {}).items():
        if not key.isascii() or not key.isdigit() or len(key) > 10:
            raise refuse("logit_bias", "token ids as keys", key)
        token = token_ids("logit_bias", [int(key)], info.vocab_size)[0]
        found[token] = number("logit_bias", value, -100, 100, 0.0)
    return found


def _bad_words(words: list[str] | None, text: TextModel, limits: Limits) -> tuple[tuple[int, ...], ...]:
    """Token sequences of each word, as it stands and after a space."""
    at_most("bad_words", words or [], limits.max_bad_words)
    found: dict[tuple[int, ...], None] = {}
    for word in words or []:
        text_bytes("bad_words", word, limits.max_bad_word_bytes)
        if not word.strip():
            raise refuse("bad_words", "words that are not blank", word)
        for spelling in (word, " " + word.lstrip()):
            found[tuple(text.tokenizer.encode(spelling))] = None
    return tuple(found)


def _n(fields: SamplingFields, limits: Limits) -> int:
    n = integer("n", fields.n, 1, limits.max_n, 1)
    if fields.best_of is not None and fields.best_of != n:
        raise RequestError(
            f"best_of: want it absent or equal to n ({n}), found {fields.best_of}; ask for n completions",
            param="best_of",
            code="unsupported_value",
        )
    return n
