"""Calls as `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` (Hermes, Qwen)."""

from __future__ import annotations

from fd_core.serving.inputs.stop import held_length
from fd_core.serving.tools.base import ToolNews, ToolParser, ToolParserManager, ToolStream
from fd_core.serving.tools.call import CallReader


class HermesStream(ToolStream):
    """Outside a call: text, held back where a tag may begin. Inside: one object, then the end tag."""

    def __init__(self, start: str, end: str) -> None:
        self._start, self._end = start, end
        self._held = ""
        self._call: CallReader | None = None
        self._count = 0

    def feed(self, text: str) -> ToolNews:
        self._held += text
        news = ToolNews()
        while self._advance(news):
            pass
        return news

    def _advance(self, news: ToolNews) -> bool:
        return self._outside(news) if self._call is None else self._inside(news, self._call)

    def _outside(self, news: ToolNews) -> bool:
        at = self._held.find(self._start)
        if at < 0:
            whole = self._held[: len(self._held) - held_length(self._held, self._start)]
            shown = whole.rstrip()  # white space before a call is not content
            news.content += shown
            self._held = self._held[len(shown) :]
            return False
        news.content += self._held[:at].rstrip()
        self._held = self._held[at + len(self._start) :]
        self._call = CallReader(self._count)
        return True

    def _inside(self, news: ToolNews, call: CallReader) -> bool:
        if not call.done:
            pieces, self._held = call.feed(self._held)
            news.calls += pieces
            if not call.done:
                return False
        return self._close(news, call)

    def _close(self, news: ToolNews, call: CallReader) -> bool:
        """Behind the object: the end tag, possibly in pieces, possibly left out by the model."""
        text = self._held.lstrip()
        if self._end.startswith(text) and text != self._end:
            return False
        self._held = text[len(self._end) :] if text.startswith(self._end) else text
        if call.told:
            self._count += 1
        else:
            news.content += self._start + call.raw + self._end
        self._call = None
        return bool(self._held)

    def finish(self) -> ToolNews:
        call, held = self._call, self._held
        self._call, self._held = None, ""
        if call is None:
            return ToolNews(held.rstrip() if self._count else held)
        return ToolNews() if call.told else ToolNews(self._start + call.raw + held)


@ToolParserManager.register_module(["hermes", "qwen"])  # type: ignore[arg-type]
class HermesToolParser(ToolParser):
    tool_call_start_token = "<tool_call>"
    tool_call_end_token = "</tool_call>"

    def stream(self) -> HermesStream:
        return HermesStream(self.tool_call_start_token, self.tool_call_end_token)
