"""A chat request to an engine request and the parsers of its answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec.structs import replace

from fd_core.engine.request import EngineRequest, SamplingParams
from fd_core.serving.errors import RequestError
from fd_core.serving.inputs.chat_template import RenderedPrompt
from fd_core.serving.inputs.guides import Guide
from fd_core.serving.inputs.limits import Limits, refuse
from fd_core.serving.inputs.messages import plain_messages, plain_tools, text_size
from fd_core.serving.inputs.prompts import check_length, engine_request, fit, truncated
from fd_core.serving.inputs.sampling import sampling_params
from fd_core.serving.inputs.text_model import TextModel
from fd_core.serving.protocol.chat import ChatRequest, NamedTool, ToolCallDelta
from fd_core.serving.state import Served
from fd_core.serving.tools import ToolStream
from fd_core.serving.tools.forced import (
    NamedCallStream,
    RequiredCallStream,
    parameters_schema,
    required_schema,
)

Tools = list[dict[str, Any]]


@dataclass(slots=True)
class Piece:
    """Parts of an answer, in the order they come: reasoning, content, calls."""

    reasoning: str = ""
    content: str = ""
    calls: list[ToolCallDelta] | None = None

    @property
    def empty(self) -> bool:
        return not (self.reasoning or self.content or self.calls)


class AnswerParser:
    """One completion's text through the reasoning parser, then the tool parser."""

    def __init__(self, plan: ChatPlan) -> None:
        reasoning = plan.served.reasoning
        self._reasoning = reasoning.stream(plan.prompt) if reasoning else None
        self._tools = plan.tool_stream() if plan.tool_stream else None
        self.called = False

    def feed(self, text: str) -> Piece:
        reasoning, content = self._reasoning.feed(text) if self._reasoning else ("", text)
        return self._through_tools(reasoning, content)

    def finish(self) -> Piece:
        reasoning, content = self._reasoning.finish() if self._reasoning else ("", "")
        piece = self._through_tools(reasoning, content)
        if self._tools is not None:
            news = self._tools.finish()
            piece.content += news.content
            piece.calls = (piece.calls or []) + news.calls or None
            self.called = self.called or bool(news.calls)
        return piece

    def _through_tools(self, reasoning: str, content: str) -> Piece:
        if self._tools is None or not content:
            return Piece(reasoning, content)
        news = self._tools.feed(content)
        self.called = self.called or bool(news.calls)
        return Piece(reasoning, news.content, news.calls or None)


@dataclass(frozen=True, slots=True)
class ChatPlan:
    """All that is decided before the engine starts."""

    served: Served
    request: EngineRequest
    prompt: str
    top_logprobs: int | None
    tool_stream: Callable[[], ToolStream] | None

    def parser(self) -> AnswerParser:
        return AnswerParser(self)


def plan_chat(
    request: ChatRequest, served: Served, limits: Limits, request_id: str, arrival: float
) -> ChatPlan:
    """Check, render, tokenise. Raises RequestError; may take a while for long conversations."""
    _check_fields(request)
    info, text = served.engine.info, served.text
    messages = plain_messages(request.messages, limits)
    tools = plain_tools(request.tools, limits)
    stream, guide = _tool_plan(request, served, tools)
    check_length("messages", text_size(messages, tools), info, limits)
    top = _top_logprobs(request)
    params = _params(request, served, limits, top, guide)
    prompt = _render(request, text, messages, tools)
    ids = truncated(prompt.token_ids, request.truncate_prompt_tokens, info)
    made = engine_request(
        request_id,
        ids,
        fit("messages", ids, params, text.defaults.max_tokens, info),
        priority=request.priority,
        cache_salt=request.cache_salt,
        arrival_time=arrival,
    )
    return ChatPlan(served, made, prompt.text, top, stream)


def _params(
    request: ChatRequest, served: Served, limits: Limits, top: int | None, forced: Guide | None
) -> SamplingParams:
    """`max_completion_tokens` wins over `max_tokens`; a forced call brings its own guide."""
    wanted = request.max_completion_tokens
    params = sampling_params(
        request,
        served.text,
        served.engine.info,
        limits,
        max_tokens=request.max_tokens if wanted is None else wanted,
        logprobs=top,
    )
    if forced is None:
        return params
    if params.guided is not None:
        raise refuse("tool_choice", "no other structured output beside a forced call", request.tool_choice)
    return replace(params, guided=forced)


def _render(
    request: ChatRequest, text: TextModel, messages: list[dict[str, Any]], tools: Tools | None
) -> RenderedPrompt:
    return text.chat_prompt(
        messages,
        tools=tools if request.tool_choice != "none" else None,
        add_generation_prompt=request.add_generation_prompt,
        continue_final_message=request.continue_final_message,
        options=_template_options(request),
    )


def _check_fields(request: ChatRequest) -> None:
    if request.chat_template is not None:
        raise RequestError(
            "chat_template: requests bring no templates; the operator sets --chat-template",
            param="chat_template",
            code="unsupported_field",
        )
    if request.stream_options is not None and not request.stream:
        raise refuse("stream_options", "it only together with stream: true", "stream: false")
    if request.continue_final_message and (
        not request.messages or request.messages[-1].role != "assistant"
    ):
        raise refuse(
            "continue_final_message", "an assistant message at the end", request.continue_final_message
        )


def _top_logprobs(request: ChatRequest) -> int | None:
    """Alternatives a token, None without log-probabilities."""
    if request.top_logprobs is not None and request.top_logprobs < 0:
        raise refuse("top_logprobs", "a number of at least 0", request.top_logprobs)
    if request.top_logprobs and not request.logprobs:
        raise refuse("top_logprobs", "logprobs: true beside it", request.top_logprobs)
    return (request.top_logprobs or 0) if request.logprobs else None


def _template_options(request: ChatRequest) -> dict[str, Any]:
    options = dict(request.chat_template_kwargs or {})
    taken = {"messages", "tools", "add_generation_prompt"} & set(options)
    if taken:
        raise refuse("chat_template_kwargs", "names that the server does not set itself", sorted(taken))
    if request.reasoning_effort is not None:
        options.setdefault("reasoning_effort", request.reasoning_effort)
        if request.reasoning_effort == "none":
            options.setdefault("enable_thinking", False)
    return options


def _tool_plan(
    request: ChatRequest, served: Served, tools: Tools | None
) -> tuple[Callable[[], ToolStream] | None, Guide | None]:
    """(how to read calls, what to force) for the request's `tool_choice`."""
    choice = request.tool_choice
    if tools is None:
        if choice not in (None, "none"):
            raise refuse("tool_choice", "tools beside it", msgspec.to_builtins(choice))
        return None, None
    if choice == "none":
        return None, None
    if isinstance(choice, NamedTool):
        name = choice.function.name
        known = {t["function"]["name"]: t["function"] for t in tools}
        if name not in known:
            raise refuse("tool_choice", f"one of {', '.join(known)}", name)
        return lambda: NamedCallStream(name), _json_guide(parameters_schema(known[name]))
    if choice == "required":
        schema = required_schema(tools, request.parallel_tool_calls is not False)
        return RequiredCallStream, _json_guide(schema)
    return _auto(served), None


def _auto(served: Served) -> Callable[[], ToolStream]:
    if served.tools is None:
        raise RequestError(
            "tools: this server has no parser for the model's calls; start it with --tool-call-parser, "
            "or use tool_choice 'required' or a named function",
            param="tools",
            code="unsupported_field",
        )
    return served.tools.stream


def _json_guide(schema: dict[str, Any]) -> Guide:
    return "json", msgspec.json.encode(schema).decode()
