"""Offline use: prompts in, texts out, with the engine in this process.

from fd_core.llm import LLM, SamplingParams
llm = LLM()                                     # the embedded model
print(llm.generate("A decorator is", SamplingParams(max_tokens=20))[0].text)
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from fd_core.engine.build import build_engine, model_folder
from fd_core.engine.config import EngineConfig
from fd_core.engine.engine import RequestRefusedError
from fd_core.engine.request import EngineOutput, EngineRequest, FinishReason, SamplingParams, TokenLogprobs
from fd_core.host.errors import RequestFailedError
from fd_core.serving.inputs.text_model import TextModel
from fd_core.serving.inputs.tokenizer import TextTokenizer
from fd_core.serving.outputs import OutputProcessor

__all__ = ["LLM", "Completion", "RequestOutput", "SamplingParams"]

Prompt = str | Sequence[int] | Mapping[str, Any]
Message = Mapping[str, Any]


@dataclass(slots=True)
class Completion:
    """One of the `n` answers; while streaming, what is new of it."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None


@dataclass(slots=True)
class RequestOutput:
    """A prompt with its answers. `metrics`: seconds of `time.time()` or spans of them."""

    request_id: str
    prompt: str
    prompt_token_ids: list[int]
    outputs: list[Completion]
    finished: bool = False
    num_cached_tokens: int = 0
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The first answer's text."""
        return self.outputs[0].text


class _Live:
    """A request under way and its result so far."""

    def __init__(self, request: EngineRequest, prompt: str, tokenizer: TextTokenizer) -> None:
        self.request = request
        self.processor = OutputProcessor(request, tokenizer)
        completions = [Completion(i) for i in range(request.params.n)]
        self.result = RequestOutput(request.request_id, prompt, request.prompt_token_ids, completions)
        self.result.metrics["arrival_time"] = request.arrival_time

    def take(self, news: EngineOutput) -> Completion | None:
        """What `news` adds, if its completion is not over yet."""
        delta = self.processor.process(news)
        if delta is None:
            return None
        finish = delta.finish_reason.value if delta.finish_reason else None
        new = Completion(delta.index, delta.text, delta.token_ids, delta.logprobs, finish)
        whole = self.result.outputs[delta.index]
        whole.text += new.text
        whole.token_ids += new.token_ids
        whole.logprobs += new.logprobs
        whole.finish_reason = finish
        self._note(news)
        return new

    def _note(self, news: EngineOutput) -> None:
        result, processor = self.result, self.processor
        result.finished = processor.done
        result.num_cached_tokens = processor.num_cached_tokens
        result.prompt_logprobs = processor.prompt_logprobs
        result.metrics.setdefault("first_token_time", news.first_token_time)
        result.metrics.setdefault("time_in_queue", news.queue_time)


class LLM:
    """An engine and its tokenizer. `options` are the fields of `EngineConfig`."""

    def __init__(self, model: str = "", *, chat_template: str | None = None, **options: Any) -> None:
        config = EngineConfig(model=model, **options)
        self.text = TextModel.load(model_folder(config), chat_template=chat_template)
        self.tokenizer = self.text.tokenizer
        self.built = build_engine(config)
        self.engine = self.built.engine
        self.info = self.built.info

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = False,
        stream: bool = False,
    ) -> Any:
        """Complete `prompts`: a text, a list of token ids, `{"prompt": either}`, or a list of those.

        Returns a list of RequestOutput in input order; with `stream`, an iterator over lists as long
        as the input, holding what is new of each request or None. A request that can never be served
        raises RequestRefusedError before any is started.
        """
        listed = _prompt_list(prompts)
        params = self._params(sampling_params, len(listed))
        live = [self._request(prompt, p) for prompt, p in zip(listed, params, strict=True)]
        self._submit(live)
        steps = self._run(live)
        return steps if stream else _collect(live, steps, use_tqdm)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        stream: bool = False,
    ) -> Any:
        """Answer one conversation (a list of messages) or several; otherwise like `generate`."""
        if not messages:
            raise ValueError("chat: want at least one message, have none")
        several = not isinstance(messages[0], Mapping)
        conversations: Any = messages if several else [messages]
        prompts = [
            self.text.chat_prompt(c, tools=tools or None, options=chat_template_kwargs).token_ids
            for c in conversations
        ]
        return self.generate(prompts, sampling_params, use_tqdm, stream)

    def default_params(self) -> SamplingParams:
        """What the model's generation_config.json recommends, to the end of its context."""
        d = self.text.defaults
        return SamplingParams(
            temperature=d.temperature,
            top_p=d.top_p,
            top_k=d.top_k,
            min_p=d.min_p,
            repetition_penalty=d.repetition_penalty,
            max_tokens=d.max_tokens,
        )

    def _params(
        self, given: SamplingParams | Sequence[SamplingParams] | None, count: int
    ) -> list[SamplingParams]:
        if given is None or isinstance(given, SamplingParams):
            return [given or self.default_params()] * count
        if len(given) != count:
            raise ValueError(f"sampling_params: want one, or one per prompt ({count}); have {len(given)}")
        return list(given)

    def _request(self, prompt: Prompt, params: SamplingParams) -> _Live:
        text, ids = self._prompt_ids(prompt)
        request = EngineRequest(
            request_id=uuid.uuid4().hex, prompt_token_ids=ids, params=params, arrival_time=time.time()
        )
        return _Live(request, text, self.tokenizer)

    def _prompt_ids(self, prompt: Prompt) -> tuple[str, list[int]]:
        if isinstance(prompt, Mapping):
            if "prompt" not in prompt:
                raise ValueError(f"prompt: want the key 'prompt', have {sorted(prompt)}")
            return self._prompt_ids(prompt["prompt"])
        if isinstance(prompt, str):
            return prompt, self.tokenizer.encode(prompt, add_special_tokens=True)
        if isinstance(prompt, Sequence) and all(isinstance(t, int) for t in prompt):
            return "", [int(t) for t in prompt]
        raise TypeError(f"prompt: want a text, a list of token ids or a dict, have {type(prompt).__name__}")

    def _submit(self, live: list[_Live]) -> None:
        """All or none: a refusal takes back those before it."""
        for i, one in enumerate(live):
            try:
                self.engine.add_request(one.request)
            except RequestRefusedError:
                for other in live[:i]:
                    self.engine.abort(other.request.request_id)
                raise

    def _run(self, live: list[_Live]) -> Iterator[list[RequestOutput | None]]:
        places = {one.request.request_id: i for i, one in enumerate(live)}
        try:
            while not all(one.result.finished for one in live):
                news: list[RequestOutput | None] = [None] * len(live)
                for output in self.engine.step():
                    place = places.get(output.request_id)
                    if place is not None:
                        self._deliver(live[place], output, news, place)
                yield news
        finally:
            for one in live:
                self.engine.abort(one.request.request_id)

    def _deliver(self, one: _Live, output: EngineOutput, news: list[Any], place: int) -> None:
        if output.finish_reason is FinishReason.ERROR:
            raise RequestFailedError(f"request {output.request_id}: {output.error}")
        new = one.take(output)
        if new is None:
            return
        if new.finish_reason and output.finish_reason is None:  # a stop string
            self.engine.abort(output.request_id, output.index)
        r = one.result
        if news[place] is None:
            news[place] = RequestOutput(r.request_id, r.prompt, r.prompt_token_ids, [])
        news[place].outputs.append(new)
        news[place].finished = r.finished


def _prompt_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, (str, Mapping)):
        return [prompts]
    listed: list[Any] = list(prompts)
    if not listed:
        raise ValueError("prompts: want at least one, have an empty list")
    return [listed] if all(isinstance(p, int) for p in listed) else listed


def _collect(live: list[_Live], steps: Iterator[Any], use_tqdm: bool) -> list[RequestOutput]:
    with tqdm(total=len(live), desc="requests", disable=not use_tqdm) as bar:
        for news in steps:
            bar.update(sum(1 for output in news if output is not None and output.finished))
    return [one.result for one in live]
