"""What a reasoning parser does: split a model's text into reasoning and answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from fd_core.serving.inputs.tokenizer import TextTokenizer
from fd_core.serving.protocol.chat import DeltaMessage
from fd_core.serving.registry import ParserRegistry


class ReasoningStream(ABC):
    """The state of one completion. Pieces put together equal the split of the whole text."""

    @abstractmethod
    def feed(self, text: str) -> tuple[str, str]:
        """(reasoning, answer) that the new text adds; what may begin a tag is held back."""

    @abstractmethod
    def finish(self) -> tuple[str, str]:
        """What was held back."""


class ReasoningParser(ABC):
    """One per model; makes a stream per completion."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.tokenizer = tokenizer

    @abstractmethod
    def is_reasoning_end(self, ids: Sequence[int]) -> bool:
        """Whether the tokens hold the end of the reasoning."""

    @abstractmethod
    def extract_content_ids(self, ids: Sequence[int]) -> list[int]:
        """The tokens after the reasoning; empty where it has not ended."""

    @abstractmethod
    def stream(self, prompt: str = "") -> ReasoningStream:
        """A fresh state; `prompt` tells whether the template opened the reasoning already."""

    def extract_reasoning_content(self, text: str, request: Any = None) -> tuple[str | None, str | None]:
        """(reasoning or None, answer or None) of a whole text."""
        stream = self.stream(opened_by(request))
        first, last = stream.feed(text), stream.finish()
        return first[0] + last[0] or None, first[1] + last[1] or None

    def extract_reasoning_content_streaming(
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_ids: Sequence[int],
        current_ids: Sequence[int],
        delta_ids: Sequence[int],
    ) -> DeltaMessage | None:
        """Stateless form of `stream`: what `delta_text` adds after `previous_text`; None for nothing."""
        stream = self.stream()
        stream.feed(previous_text)
        reasoning, content = stream.feed(delta_text)
        if not reasoning and not content:
            return None
        return DeltaMessage(reasoning_content=reasoning or None, content=content or None)


def opened_by(request: Any) -> str:
    """The prompt text of a request, where it has one."""
    found = getattr(request, "prompt", None)
    return found if isinstance(found, str) else ""


ReasoningParserManager: ParserRegistry[ReasoningParser] = ParserRegistry("reasoning", ReasoningParser)  # type: ignore[type-abstract]
