"""Engine outputs to text: one processor per engine request, usable without HTTP."""

from __future__ import annotations

from dataclasses import dataclass, field

from fd_core.engine.request import EngineOutput, EngineRequest, FinishReason, TokenLogprobs
from fd_core.serving.inputs.detokenizer import Detokenizer
from fd_core.serving.inputs.tokenizer import TextTokenizer


@dataclass(slots=True)
class TextDelta:
    """News of one completion. `text` lags behind `token_ids` where a stop string may have begun."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    error: str = ""


class OutputProcessor:
    """Turns the outputs of one EngineRequest into text deltas.

    A completion that hits a stop string is over at once, whatever the engine still sends of it; when
    all are over, `done` tells the reader to close the engine's iterator, which aborts the rest.
    """

    def __init__(self, request: EngineRequest, tokenizer: TextTokenizer) -> None:
        params = request.params
        self._stop_token_ids = frozenset(params.stop_token_ids)
        self._scoring = params.max_tokens == 0
        self._include_stop = params.include_stop_str_in_output
        self._open = {
            index: Detokenizer(
                tokenizer,
                request.prompt_token_ids,
                stop=params.stop,
                include_stop=params.include_stop_str_in_output,
                skip_special_tokens=params.skip_special_tokens,
                min_tokens=params.min_tokens,
            )
            for index in range(params.n)
        }
        self.num_prompt_tokens = len(request.prompt_token_ids)
        self.num_output_tokens = 0
        self.num_cached_tokens = 0
        self.prompt_logprobs: list[TokenLogprobs | None] | None = None

    @property
    def done(self) -> bool:
        return not self._open

    def process(self, output: EngineOutput) -> TextDelta | None:
        """The delta to pass on; None for news of a completion that is already over."""
        self.num_cached_tokens = max(self.num_cached_tokens, output.num_cached_tokens)
        if output.prompt_logprobs is not None:
            self.prompt_logprobs = output.prompt_logprobs
        detokenizer = self._open.get(output.index)
        if detokenizer is None:
            return None
        delta = self._delta(detokenizer, output)
        if delta.finish_reason is not None:
            del self._open[output.index]
        return delta

    def _delta(self, detokenizer: Detokenizer, output: EngineOutput) -> TextDelta:
        if self._scoring:  # an engine may sample one token all the same
            return TextDelta(output.index, finish_reason=output.finish_reason, error=output.error)
        before = detokenizer.num_tokens
        hidden = self._hidden(output)
        text = detokenizer.feed(output.token_ids[: len(output.token_ids) - hidden])
        if detokenizer.stopped is None:
            detokenizer.count(hidden)
        delta = TextDelta(output.index, text, finish_reason=output.finish_reason, error=output.error)
        if detokenizer.stopped is not None:
            delta.finish_reason, delta.stop_reason = FinishReason.STOP, detokenizer.stopped
        elif output.finish_reason is not None:
            delta.text += detokenizer.finish()
            # An end-of-text token is the model's own end, no reason to name.
            delta.stop_reason = (
                output.stop_token_id if output.stop_token_id in self._stop_token_ids else None
            )
            if detokenizer.stopped is not None:
                delta.finish_reason, delta.stop_reason = FinishReason.STOP, detokenizer.stopped
        used = detokenizer.num_tokens - before
        delta.token_ids, delta.logprobs = output.token_ids[:used], output.logprobs[:used]
        self.num_output_tokens += used
        return delta

    def _hidden(self, output: EngineOutput) -> int:
        """1 where the last token is the stop token and is not to be shown."""
        ends = bool(output.token_ids) and output.token_ids[-1] == output.stop_token_id
        return int(ends and not self._include_stop)
