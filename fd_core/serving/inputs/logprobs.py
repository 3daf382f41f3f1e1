"""Log-probabilities with the tokens' texts, in the forms of chat and completions."""

from __future__ import annotations

from collections.abc import Sequence

from fd_core.engine.request import TokenLogprobs
from fd_core.serving.inputs.tokenizer import TextTokenizer
from fd_core.serving.protocol.chat import ChatLogprob, ChatLogprobs, TopLogprob
from fd_core.serving.protocol.common import PromptLogprobs, TokenChance
from fd_core.serving.protocol.completion import CompletionLogprobs

LOWEST = -9999.0  # JSON has no -inf


def finite(value: float) -> float:
    return value if value > LOWEST else LOWEST


def chat_logprobs(
    tokenizer: TextTokenizer, ids: Sequence[int], found: Sequence[TokenLogprobs], top: int
) -> ChatLogprobs:
    return ChatLogprobs(
        [_chat_entry(tokenizer, token, one, top) for token, one in zip(ids, found, strict=True)]
    )


def _chat_entry(tokenizer: TextTokenizer, token: int, found: TokenLogprobs, top: int) -> ChatLogprob:
    best = list(zip(found.top_ids, found.top_logprobs, strict=True))[:top]
    return ChatLogprob(
        tokenizer.token_text(token),
        finite(found.logprob),
        list(tokenizer.token_bytes(token)),
        [TopLogprob(tokenizer.token_text(i), finite(p), list(tokenizer.token_bytes(i))) for i, p in best],
    )


def completion_logprobs(
    tokenizer: TextTokenizer,
    ids: Sequence[int],
    found: Sequence[TokenLogprobs | None],
    top: int,
    offset: int = 0,
) -> CompletionLogprobs:
    """`offset`: where the first token's text begins. `top_logprobs` always hold the chosen token too."""
    result = CompletionLogprobs([], [], [], [])
    for token, one in zip(ids, found, strict=True):
        text = tokenizer.token_text(token)
        result.tokens.append(text)
        result.token_logprobs.append(None if one is None else finite(one.logprob))
        result.top_logprobs.append(None if one is None else _top(tokenizer, text, one, top))
        result.text_offset.append(offset)
        offset += len(text)
    return result


def _top(tokenizer: TextTokenizer, text: str, found: TokenLogprobs, top: int) -> dict[str, float]:
    """By text; where two tokens share a text the likelier one is told."""
    entries: dict[str, float] = {}
    for token, value in list(zip(found.top_ids, found.top_logprobs, strict=True))[:top]:
        entries.setdefault(tokenizer.token_text(token), finite(value))
    entries.setdefault(text, finite(found.logprob))
    return entries


def prompt_logprobs(
    tokenizer: TextTokenizer, ids: Sequence[int], found: Sequence[TokenLogprobs | None]
) -> PromptLogprobs:
    """One dict a prompt token, by token id: the token itself and the best alternatives."""
    return [None if one is None else _chances(tokenizer, i, one) for i, one in zip(ids, found, strict=True)]


def _chances(tokenizer: TextTokenizer, token: int, found: TokenLogprobs) -> dict[str, TokenChance]:
    entries = {str(token): TokenChance(finite(found.logprob), found.rank, tokenizer.token_text(token))}
    for rank, (other, value) in enumerate(zip(found.top_ids, found.top_logprobs, strict=True), 1):
        entries.setdefault(str(other), TokenChance(finite(value), rank, tokenizer.token_text(other)))
    return entries
