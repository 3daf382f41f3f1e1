"""A completion request to engine requests, one a prompt."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from fd_core.engine.request import EngineRequest, ModelInfo, SamplingParams
from fd_core.serving.errors import RequestError
from fd_core.serving.inputs.limits import Limits, refuse
from fd_core.serving.inputs.prompts import (
    Prompt,
    check_length,
    engine_request,
    fit,
    split_prompts,
    truncated,
)
from fd_core.serving.inputs.sampling import sampling_params
from fd_core.serving.inputs.text_model import TextModel
from fd_core.serving.protocol.completion import CompletionRequest
from fd_core.serving.state import Served

DEFAULT_MAX_TOKENS = 16  # OpenAI's, for this route only


@dataclass(frozen=True, slots=True)
class CompletionPlan:
    """`echo` holds the text of each prompt where it is to be repeated."""

    served: Served
    requests: list[EngineRequest]
    echo: list[str] | None
    logprobs: int | None


def count_prompts(request: CompletionRequest, limits: Limits) -> int:
    """Completions that the request asks for; bounded before anything is done for it."""
    prompts = request.prompt
    several = not isinstance(prompts, str) and bool(prompts) and not isinstance(prompts[0], int)
    total = (len(prompts) if several else 1) * max(1, min(request.n or 1, limits.max_n))
    if total > limits.max_sequences:
        raise refuse("prompt", f"at most {limits.max_sequences} completions (prompts times n)", total)
    return total


def plan_completion(
    request: CompletionRequest, served: Served, limits: Limits, request_id: str, arrival: float
) -> CompletionPlan:
    """Check and tokenise. Raises RequestError."""
    _check_fields(request)
    info, text = served.engine.info, served.text
    scoring = request.echo and request.logprobs is not None
    params = sampling_params(
        request,
        text,
        info,
        limits,
        max_tokens=DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens,
        logprobs=request.logprobs,
        scoring=scoring,
    )
    if scoring and params.prompt_logprobs is None:
        params = replace(params, prompt_logprobs=params.logprobs)
    requests = [
        _one(request, prompt, params, served, limits, f"{request_id}-{at}", arrival)
        for at, prompt in enumerate(split_prompts(request.prompt))
    ]
    echo = [text.tokenizer.decode(r.prompt_token_ids) for r in requests] if request.echo else None
    return CompletionPlan(served, requests, echo, request.logprobs)


def _one(
    request: CompletionRequest,
    prompt: Prompt,
    params: SamplingParams,
    served: Served,
    limits: Limits,
    request_id: str,
    arrival: float,
) -> EngineRequest:
    info = served.engine.info
    ids = truncated(_ids(request, prompt, served.text, info, limits), request.truncate_prompt_tokens, info)
    return engine_request(
        request_id,
        ids,
        fit("prompt", ids, params, served.text.defaults.max_tokens, info),
        priority=request.priority,
        cache_salt=request.cache_salt,
        arrival_time=arrival,
    )


def _ids(
    request: CompletionRequest, prompt: Prompt, text: TextModel, info: ModelInfo, limits: Limits
) -> list[int]:
    if isinstance(prompt, list):
        return prompt
    check_length("prompt", len(prompt), info, limits)
    return text.tokenizer.encode(prompt, add_special_tokens=request.add_special_tokens)


def _check_fields(request: CompletionRequest) -> None:
    if request.suffix:
        raise RequestError(
            "suffix: this server does not fill in the middle; leave it out",
            param="suffix",
            code="unsupported_field",
        )
    if request.stream_options is not None and not request.stream:
        raise refuse("stream_options", "it only together with stream: true", "stream: false")
    if request.stream and request.prompt_logprobs is not None:
        raise refuse("prompt_logprobs", "stream: false beside it", request.prompt_logprobs)
