"""What a tool parser does: find calls of functions in a model's text."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from fd_core.serving.inputs.tokenizer import TextTokenizer
from fd_core.serving.protocol.chat import (
    DeltaMessage,
    FunctionCall,
    FunctionDelta,
    ToolCall,
    ToolCallDelta,
)
from fd_core.serving.registry import ParserRegistry


@dataclass(slots=True)
class ToolNews:
    """What a piece of text adds: plain content and parts of calls."""

    content: str = ""
    calls: list[ToolCallDelta] = field(default_factory=list)

    def __iadd__(self, other: ToolNews) -> ToolNews:
        self.content += other.content
        self.calls += other.calls
        return self


class ToolStream(ABC):
    """The state of one completion. The `arguments` pieces of a call join to one JSON value."""

    @abstractmethod
    def feed(self, text: str) -> ToolNews:
        """What the new text adds."""

    @abstractmethod
    def finish(self) -> ToolNews:
        """What was held back; an unfinished call counts as content."""


@dataclass(frozen=True, slots=True)
class ExtractedToolCallInformation:
    tools_called: bool
    tool_calls: list[ToolCall]
    content: str | None


class ToolParser(ABC):
    """One per model; makes a stream per completion."""

    tool_call_start_token: ClassVar[str] = ""
    tool_call_end_token: ClassVar[str] = ""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.tokenizer = tokenizer

    @abstractmethod
    def stream(self) -> ToolStream:
        """A fresh state."""

    def extract_tool_calls(self, text: str, request: Any = None) -> ExtractedToolCallInformation:
        stream = self.stream()
        news = stream.feed(text)
        news += stream.finish()
        calls = joined_calls(news.calls)
        return ExtractedToolCallInformation(bool(calls), calls, news.content or None)

    def extract_tool_calls_streaming(
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_ids: Sequence[int],
        current_ids: Sequence[int],
        delta_ids: Sequence[int],
        request: Any = None,
    ) -> DeltaMessage | None:
        """Stateless form of `stream`; ids of calls are fresh at each message, so servers use `stream`."""
        stream = self.stream()
        stream.feed(previous_text)
        news = stream.feed(delta_text)
        if not news.content and not news.calls:
            return None
        return DeltaMessage(content=news.content or None, tool_calls=news.calls or None)


def begin_call(index: int, name: str) -> ToolCallDelta:
    """The first piece of a call: index, id, name."""
    return ToolCallDelta(index, "call_" + secrets.token_hex(12), "function", FunctionDelta(name, ""))


def more_arguments(index: int, text: str) -> ToolCallDelta:
    return ToolCallDelta(index, function=FunctionDelta(arguments=text))


def joined_calls(pieces: list[ToolCallDelta]) -> list[ToolCall]:
    """Whole calls from their streamed pieces."""
    calls: dict[int, ToolCall] = {}
    for piece in pieces:
        function = piece.function or FunctionDelta()
        call = calls.setdefault(piece.index, ToolCall(FunctionCall("", "")))
        call.id = piece.id or call.id
        call.function.name += function.name or ""
        call.function.arguments += function.arguments or ""
    return list(calls.values())


ToolParserManager: ParserRegistry[ToolParser] = ParserRegistry("tool", ToolParser)  # type: ignore[type-abstract]
