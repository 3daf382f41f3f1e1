"""`POST /v1/chat/completions`."""

from __future__ import annotations

import asyncio
import time

import msgspec

from fd_core.engine.request import FinishReason
from fd_core.serving.chat import AnswerParser, ChatPlan, Piece, plan_chat
from fd_core.serving.generation import Generation
from fd_core.serving.http.call import ENCODER, Call
from fd_core.serving.http.running import running
from fd_core.serving.inputs.logprobs import chat_logprobs, prompt_logprobs
from fd_core.serving.outputs import TextDelta
from fd_core.serving.protocol.chat import (
    AnswerMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatLogprobs,
    ChatRequest,
    ChatResponse,
    DeltaMessage,
)
from fd_core.serving.protocol.common import Usage, usage
from fd_core.serving.state import ServerState
from fd_core.serving.tools.base import joined_calls

LONG = 16 << 10  # bytes of a body above which planning leaves the event loop


async def chat_completions(state: ServerState, call: Call) -> None:
    state.ready()
    request = await call.json(ChatRequest, state.config)
    served = state.ready()
    model = state.check_model(request.model)
    deadline = call.deadline(state.config)
    limits = state.config.limits
    weight = max(1, min(request.n or 1, limits.max_n))
    with state.admission.enter(weight):
        arguments = (request, served, limits, call.engine_id("chatcmpl"), call.arrival)
        small = sum(_size(m.content) for m in request.messages) < LONG
        plan = plan_chat(*arguments) if small else await asyncio.to_thread(plan_chat, *arguments)
        async with running(state, served, call, [plan.request], deadline) as generation:
            answer = ChatAnswer(request, plan, generation, f"chatcmpl-{call.request_id}", model)
            if request.stream:
                await answer.stream(call, state.config.keep_alive_comment)
            else:
                await call.reply(await answer.whole())


def _size(content: object) -> int:
    return len(content) if isinstance(content, str) else LONG if content else 0


class ChatAnswer:
    """Builds the answer of one request, whole or in chunks, from the same parsed pieces."""

    def __init__(
        self, request: ChatRequest, plan: ChatPlan, generation: Generation, answer_id: str, model: str
    ) -> None:
        self._request = request
        self._plan = plan
        self._generation = generation
        self._id, self._model, self._created = answer_id, model, int(time.time())
        self._parsers = [plan.parser() for _ in range(plan.request.params.n)]
        options = request.stream_options
        self._usage_at_end = options is not None and options.include_usage
        self._usage_always = options is not None and options.continuous_usage_stats

    def _usage(self) -> Usage:
        g = self._generation
        return usage(g.prompt_tokens, g.completion_tokens, g.cached_tokens)

    def _logprobs(self, delta: TextDelta) -> ChatLogprobs | None:
        if self._plan.top_logprobs is None:
            return None
        tokenizer = self._plan.served.text.tokenizer
        return chat_logprobs(tokenizer, delta.token_ids, delta.logprobs, self._plan.top_logprobs)

    def _reason(self, parser: AnswerParser, reason: FinishReason) -> str:
        return "tool_calls" if parser.called and reason is FinishReason.STOP else reason.value

    async def whole(self) -> ChatResponse:
        choices = [self._empty_choice(index) for index in range(len(self._parsers))]
        pieces: list[list[Piece]] = [[] for _ in choices]
        async for _, delta in self._generation:
            parser = self._parsers[delta.index]
            pieces[delta.index].append(parser.feed(delta.text))
            self._collect(choices[delta.index], delta)
            if delta.finish_reason is not None:
                pieces[delta.index].append(parser.finish())
                choices[delta.index].finish_reason = self._reason(parser, delta.finish_reason)
                choices[delta.index].stop_reason = delta.stop_reason
        for choice, parts in zip(choices, pieces, strict=True):
            choice.message = self._message(parts)
        return self._response(choices)

    def _empty_choice(self, index: int) -> ChatChoice:
        choice = ChatChoice(index, AnswerMessage("assistant", ""), None, None)
        if self._plan.top_logprobs is not None:
            choice.logprobs = ChatLogprobs([])
        if self._request.return_token_ids:
            choice.token_ids = []
        return choice

    def _collect(self, choice: ChatChoice, delta: TextDelta) -> None:
        found = self._logprobs(delta)
        if choice.logprobs is not None and found is not None:
            choice.logprobs.content += found.content
        if isinstance(choice.token_ids, list):
            choice.token_ids += delta.token_ids

    def _message(self, parts: list[Piece]) -> AnswerMessage:
        content = "".join(p.content for p in parts)
        reasoning = "".join(p.reasoning for p in parts) or None
        calls = joined_calls([c for p in parts for c in p.calls or []]) or None
        if not self._request.include_reasoning:
            reasoning = None
        shown = None if calls and not content else content
        return AnswerMessage("assistant", shown, reasoning, reasoning, calls)

    def _response(self, choices: list[ChatChoice]) -> ChatResponse:
        response = ChatResponse(
            self._id, "chat.completion", self._created, self._model, choices, self._usage()
        )
        found = self._generation.processors[0].prompt_logprobs
        prompt_ids = self._plan.request.prompt_token_ids
        if self._request.prompt_logprobs is not None and found is not None:
            response.prompt_logprobs = prompt_logprobs(self._plan.served.text.tokenizer, prompt_ids, found)
        if self._request.return_token_ids:
            response.prompt_token_ids = prompt_ids
        return response

    async def stream(self, call: Call, patience: float) -> None:
        """The status is decided by the first news; only a long wait begins the stream before it."""
        news = await self._generation.next(patience)
        await call.begin_stream()
        await self._roles(call)
        unfinished = len(self._parsers)
        while True:
            if news is None:
                await call.comment()
            else:
                await self._chunks(call, news[1])
                unfinished -= news[1].finish_reason is not None
            if not unfinished:
                break
            news = await self._generation.next(patience)
        if self._usage_at_end:
            await self._send(call, [], self._usage())
        await call.event(b"[DONE]")
        await call.end()

    async def _roles(self, call: Call) -> None:
        for index in range(len(self._parsers)):
            await self._send(call, [ChatChunkChoice(index, DeltaMessage(role="assistant", content=""))])

    async def _chunks(self, call: Call, delta: TextDelta) -> None:
        """The chunks of one delta: text, then the end. Log-probabilities go with the first chunk."""
        parser = self._parsers[delta.index]
        piece = parser.feed(delta.text)
        logprobs = self._logprobs(delta)
        if not piece.empty or delta.token_ids:
            await self._part(call, delta, piece, logprobs)
        if delta.finish_reason is None:
            return
        rest = parser.finish()
        if not rest.empty:
            await self._part(call, TextDelta(delta.index), rest, None)
        reason = self._reason(parser, delta.finish_reason)
        last = ChatChunkChoice(delta.index, DeltaMessage(), None, reason, delta.stop_reason)
        await self._send(call, [last])

    async def _part(
        self, call: Call, delta: TextDelta, piece: Piece, logprobs: ChatLogprobs | None
    ) -> None:
        """Nothing to tell (text held back, no ids asked for): no chunk."""
        reasoning = piece.reasoning if self._request.include_reasoning else ""
        message = DeltaMessage(
            content=piece.content or None,
            reasoning_content=reasoning or None,
            reasoning=reasoning or None,
            tool_calls=piece.calls,
        )
        choice = ChatChunkChoice(delta.index, message, logprobs)
        if self._request.return_token_ids:
            choice.token_ids = delta.token_ids
        told = piece.content or reasoning or piece.calls or logprobs or self._request.return_token_ids
        if told or self._usage_always:
            await self._send(call, [choice])

    async def _send(self, call: Call, choices: list[ChatChunkChoice], totals: Usage | None = None) -> None:
        shown: Usage | msgspec.UnsetType | None = totals if self._usage_at_end else msgspec.UNSET
        if self._usage_always:
            shown = self._usage()
        chunk = ChatChunk(self._id, "chat.completion.chunk", self._created, self._model, choices, shown)
        await call.event(ENCODER.encode(chunk))
