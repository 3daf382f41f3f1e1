"""Reasoning between two tags, `<think>` and `</think>`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from fd_core.serving.inputs.stop import held_length
from fd_core.serving.inputs.tokenizer import TextTokenizer
from fd_core.serving.reasoning.base import (
    ReasoningParser,
    ReasoningParserManager,
    ReasoningStream,
    opened_by,
)


class ThinkStream(ReasoningStream):
    """Three states: before the start tag, inside, after the end tag.

    White space around the tags is dropped. A text that does not begin with the start tag is answer.
    """

    def __init__(self, start: str, end: str, inside: bool) -> None:
        self._start, self._end = start, end
        self._state = "inside" if inside else "before"
        self._held = ""
        self._trim = True  # drop white space that follows a tag

    def feed(self, text: str) -> tuple[str, str]:
        self._held += text
        reasoning = ""
        if self._state == "before":
            self._open()
        if self._state == "inside":
            reasoning = self._inside()
        return reasoning, self._after() if self._state == "after" else ""

    def _open(self) -> None:
        text = self._held.lstrip()
        if text.startswith(self._start):
            self._state, self._held = "inside", text[len(self._start) :]
        elif not self._start.startswith(text):
            self._state, self._trim = "after", False

    def _inside(self) -> str:
        text = self._held.lstrip() if self._trim else self._held
        at = text.find(self._end)
        if at >= 0:
            self._state, self._held, self._trim = "after", text[at + len(self._end) :], True
            return text[:at].rstrip()
        whole = text[: len(text) - held_length(text, self._end)]
        shown = whole.rstrip()
        self._trim = self._trim and not shown
        self._held = text[len(shown) :]
        return shown

    def _after(self) -> str:
        text = self._held.lstrip() if self._trim else self._held
        self._held = ""
        self._trim = self._trim and not text
        return text

    def finish(self) -> tuple[str, str]:
        held, self._held = self._held, ""
        if self._state == "inside":
            return held.rstrip(), ""
        return "", held


class ThinkParser(ReasoningParser):
    """The generic parser. `always_open`: the template writes the start tag without saying so."""

    start: ClassVar[str] = "<think>"
    end: ClassVar[str] = "</think>"
    always_open: ClassVar[bool] = False

    def __init__(self, tokenizer: TextTokenizer) -> None:
        super().__init__(tokenizer)
        self._end_id = tokenizer.token_id(self.end)

    def is_reasoning_end(self, ids: Sequence[int]) -> bool:
        if self._end_id is not None:
            return self._end_id in ids
        return self.end in self.tokenizer.decode(list(ids), skip_special_tokens=False)

    def extract_content_ids(self, ids: Sequence[int]) -> list[int]:
        ids = list(ids)
        for at in range(1, len(ids) + 1):
            if self.is_reasoning_end(ids[:at] if self._end_id is None else ids[at - 1 : at]):
                return ids[at:]
        return []

    def stream(self, prompt: str = "") -> ThinkStream:
        opened = prompt.rstrip().endswith(self.start)
        return ThinkStream(self.start, self.end, opened or self.always_open)

    def extract_reasoning_content(self, text: str, request: object = None) -> tuple[str | None, str | None]:
        """A whole text with only the end tag counts as opened by the template."""
        opened = opened_by(request) or (self.start if self.end in text and self.start not in text else "")
        stream = self.stream(opened)
        first, last = stream.feed(text), stream.finish()
        return first[0] + last[0] or None, first[1] + last[1] or None


@ReasoningParserManager.register_module(["think", "qwen3"])  # type: ignore[arg-type]
class Qwen3ReasoningParser(ThinkParser):
    """Qwen3: the model opens and closes the tags, or the template wrote an empty pair."""


@ReasoningParserManager.register_module("deepseek-r1")  # type: ignore[arg-type]
class OpenThinkParser(ThinkParser):
    """Models whose answers begin inside the reasoning."""

    always_open = True
