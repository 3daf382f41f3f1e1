"""`POST /v1/completions`."""

from __future__ import annotations

import asyncio
import time

import msgspec

from fd_core.engine.request import TokenLogprobs
from fd_core.serving.completion import CompletionPlan, count_prompts, plan_completion
from fd_core.serving.generation import Generation
from fd_core.serving.http.call import ENCODER, Call
from fd_core.serving.http.running import running
from fd_core.serving.inputs.logprobs import completion_logprobs, prompt_logprobs
from fd_core.serving.outputs import TextDelta
from fd_core.serving.protocol.common import PromptLogprobs, Usage, usage
from fd_core.serving.protocol.completion import (
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
    CompletionResponse,
)
from fd_core.serving.state import ServerState

LONG = 16 << 10


async def completions(state: ServerState, call: Call) -> None:
    state.ready()
    request = await call.json(CompletionRequest, state.config)
    served = state.ready()
    model = state.check_model(request.model)
    deadline = call.deadline(state.config)
    limits = state.config.limits
    with state.admission.enter(count_prompts(request, limits)):
        arguments = (request, served, limits, call.engine_id("cmpl"), call.arrival)
        small = isinstance(request.prompt, str) and len(request.prompt) < LONG
        plan = (
            plan_completion(*arguments) if small else await asyncio.to_thread(plan_completion, *arguments)
        )
        async with running(state, served, call, plan.requests, deadline) as generation:
            answer = CompletionAnswer(request, plan, generation, f"cmpl-{call.request_id}", model)
            if request.stream:
                await answer.stream(call, state.config.keep_alive_comment)
            else:
                await call.reply(await answer.whole())


class CompletionAnswer:
    """Builds the answer of one request, whole or in chunks. Choice number = prompt * n + index."""

    def __init__(
        self,
        request: CompletionRequest,
        plan: CompletionPlan,
        generation: Generation,
        answer_id: str,
        model: str,
    ) -> None:
        self._request = request
        self._plan = plan
        self._generation = generation
        self._id, self._model, self._created = answer_id, model, int(time.time())
        self._n = plan.requests[0].params.n
        self._tokenizer = plan.served.text.tokenizer
        self._offsets: dict[int, int] = {}
        options = request.stream_options
        self._usage_at_end = options is not None and options.include_usage
        self._usage_always = options is not None and options.continuous_usage_stats

    def _usage(self) -> Usage:
        g = self._generation
        return usage(g.prompt_tokens, g.completion_tokens, g.cached_tokens)

    def _choice(self, at: int, delta: TextDelta) -> CompletionChoice:
        """The delta as a choice; the first of each repeats the prompt where `echo` asks for it."""
        index = at * self._n + delta.index
        first = index not in self._offsets
        prefix = self._plan.echo[at] if self._plan.echo is not None and first else ""
        choice = CompletionChoice(
            index,
            prefix + delta.text,
            self._logprobs(at, index, delta, first),
            delta.finish_reason.value if delta.finish_reason else None,
            delta.stop_reason,
        )
        if self._request.return_token_ids:
            choice.token_ids = delta.token_ids
            if first:
                choice.prompt_token_ids = self._plan.requests[at].prompt_token_ids
        return choice

    def _logprobs(self, at: int, index: int, delta: TextDelta, first: bool) -> CompletionLogprobs | None:
        offset = self._offsets.setdefault(index, 0)
        if self._plan.logprobs is None:
            return None
        ids, found = list(delta.token_ids), list[TokenLogprobs | None](delta.logprobs)
        if first and self._plan.echo is not None:
            prompt = self._generation.processors[at].prompt_logprobs
            ids = self._plan.requests[at].prompt_token_ids + ids
            found = (prompt or [None] * len(self._plan.requests[at].prompt_token_ids)) + found
        made = completion_logprobs(self._tokenizer, ids, found, self._plan.logprobs, offset)
        self._offsets[index] = offset + sum(map(len, made.tokens))
        return made

    async def whole(self) -> CompletionResponse:
        choices: dict[int, CompletionChoice] = {}
        texts: dict[int, list[str]] = {}
        async for at, delta in self._generation:
            part = self._choice(at, delta)
            whole = choices.setdefault(part.index, part)
            texts.setdefault(part.index, []).append(part.text)
            if whole is not part:
                _join(whole, part)
        for index, choice in choices.items():
            choice.text = "".join(texts[index])
            if self._request.prompt_logprobs is not None:
                choice.prompt_logprobs = self._prompt_logprobs(index // self._n)
        ordered = [choices[index] for index in sorted(choices)]
        return self._response(ordered, self._usage())

    def _prompt_logprobs(self, at: int) -> PromptLogprobs | None:
        found = self._generation.processors[at].prompt_logprobs
        ids = self._plan.requests[at].prompt_token_ids
        return None if found is None else prompt_logprobs(self._tokenizer, ids, found)

    def _response(
        self, choices: list[CompletionChoice], totals: Usage | msgspec.UnsetType | None
    ) -> CompletionResponse:
        return CompletionResponse(self._id, "text_completion", self._created, self._model, choices, totals)

    async def stream(self, call: Call, patience: float) -> None:
        """The status is decided by the first news; only a long wait begins the stream before it."""
        news = await self._generation.next(patience)
        await call.begin_stream()
        unfinished = self._generation.num_choices
        while True:
            if news is None:
                await call.comment()
            else:
                await self._part(call, *news)
                unfinished -= news[1].finish_reason is not None
            if not unfinished:
                break
            news = await self._generation.next(patience)
        if self._usage_at_end:
            await call.event(ENCODER.encode(self._response([], self._usage())))
        await call.event(b"[DONE]")
        await call.end()

    async def _part(self, call: Call, at: int, delta: TextDelta) -> None:
        choice = self._choice(at, delta)
        told = choice.text or choice.finish_reason or choice.logprobs or self._request.return_token_ids
        if not told and not self._usage_always:
            return
        totals: Usage | msgspec.UnsetType | None = None if self._usage_at_end else msgspec.UNSET
        if self._usage_always:
            totals = self._usage()
        await call.event(ENCODER.encode(self._response([choice], totals)))


def _join(whole: CompletionChoice, part: CompletionChoice) -> None:
    whole.finish_reason, whole.stop_reason = part.finish_reason, part.stop_reason
    if whole.logprobs is not None and part.logprobs is not None:
        whole.logprobs.tokens += part.logprobs.tokens
        whole.logprobs.token_logprobs += part.logprobs.token_logprobs
        whole.logprobs.top_logprobs += part.logprobs.top_logprobs
        whole.logprobs.text_offset += part.logprobs.text_offset
    if isinstance(whole.token_ids, list) and isinstance(part.token_ids, list):
        whole.token_ids += part.token_ids
