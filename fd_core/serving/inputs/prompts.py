"""Prompts to token ids, and how much room they leave."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from fd_core.engine.request import EngineRequest, ModelInfo, SamplingParams
from fd_core.serving.errors import RequestError
from fd_core.serving.inputs.limits import Limits, refuse, token_ids

Prompt = str | list[int]


def split_prompts(given: str | Sequence[str | int | Sequence[int]]) -> list[Prompt]:
    """The four forms of `prompt` as a list of texts or id lists; refuses empty and mixed ones."""
    if isinstance(given, str):
        return [_filled(given)]
    if not given:
        raise refuse("prompt", "a text, texts, token ids or lists of token ids", list(given))
    kinds = {type(item) for item in given}
    if kinds == {int}:
        return [[int(i) for i in given]]  # type: ignore[arg-type]
    if kinds == {str}:
        return [_filled(str(item)) for item in given]
    if kinds <= {list, tuple}:
        return [_filled([int(i) for i in item]) for item in given]  # type: ignore[union-attr]
    raise refuse("prompt", "entries of one kind", sorted(k.__name__ for k in kinds))


def _filled(prompt: Prompt) -> Prompt:
    if not prompt:
        raise refuse("prompt", "a prompt that is not empty", prompt)
    return prompt


def check_length(param: str, characters: int, info: ModelInfo, limits: Limits) -> None:
    """Before tokenising: text that cannot fit the context is refused by its size alone."""
    most = limits.chars_per_token * info.max_model_len
    if characters > most:
        raise RequestError(
            f"{param}: want at most {most} characters for a context of {info.max_model_len} tokens, "
            f"found {characters}",
            param=param,
            code="context_length_exceeded",
        )


def truncated(ids: list[int], keep: int | None, info: ModelInfo) -> list[int]:
    """The last `keep` tokens (-1: as many as the context takes)."""
    if keep is None:
        return ids
    if keep != -1 and not 1 <= keep <= info.max_model_len:
        raise refuse("truncate_prompt_tokens", f"-1 or 1..{info.max_model_len}", keep)
    return ids[-(info.max_model_len - 1 if keep == -1 else keep) :]


def fit(
    param: str, ids: list[int], params: SamplingParams, default: int | None, info: ModelInfo
) -> SamplingParams:
    """Settle `max_tokens` against the room the prompt leaves; a longer wish ends with `length`."""
    if not ids:
        raise refuse(param, "a prompt of at least one token", "none")
    token_ids(param, ids, info.vocab_size)
    room = info.max_model_len - len(ids)
    least = 0 if params.max_tokens == 0 else 1
    if room < least:
        raise RequestError(
            f"{param}: this model's context is {info.max_model_len} tokens, the prompt has {len(ids)} "
            f"and leaves no room for an answer",
            param=param,
            code="context_length_exceeded",
        )
    wanted = params.max_tokens if params.max_tokens is not None else default or room
    return replace(params, max_tokens=min(wanted, room), min_tokens=min(params.min_tokens, wanted, room))


def engine_request(
    request_id: str,
    ids: list[int],
    params: SamplingParams,
    *,
    priority: int = 0,
    cache_salt: str = "",
    arrival_time: float = 0.0,
) -> EngineRequest:
    return EngineRequest(
        request_id=request_id,
        prompt_token_ids=ids,
        params=params,
        priority=priority,
        cache_salt=cache_salt,
        arrival_time=arrival_time,
    )
