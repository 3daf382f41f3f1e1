"""`/v1/completions`."""

from __future__ import annotations

from typing import Literal

import msgspec

from fd_core.serving.protocol.common import PromptLogprobs, SamplingFields, Usage


class CompletionRequest(SamplingFields, kw_only=True):
    """`prompt`: a text, texts, the ids of one prompt, or lists of ids."""

    prompt: str | list[str | int | list[int]]
    echo: bool = False
    suffix: str | None = None
    logprobs: int | None = None
    add_special_tokens: bool = True


class CompletionLogprobs(msgspec.Struct):
    """Lists over tokens; None for the first token of an echoed prompt."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(msgspec.Struct):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None = None
    prompt_logprobs: PromptLogprobs | msgspec.UnsetType | None = msgspec.UNSET
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    prompt_token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET


class CompletionResponse(msgspec.Struct):
    """A whole answer, or one chunk of a stream (`usage` then only where asked for)."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET
    system_fingerprint: str | None = None
