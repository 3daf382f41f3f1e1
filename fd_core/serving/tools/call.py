"""One call object, `{"name": ..., "arguments": {...}}`, as it streams in."""

from __future__ import annotations

import re

import msgspec

from fd_core.serving.protocol.chat import ToolCallDelta
from fd_core.serving.tools.base import begin_call, more_arguments
from fd_core.serving.tools.scan import ValueScanner

# Linear: no nested repetition. The name comes before the arguments, or the call is told when whole.
HEAD = re.compile(
    r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=[{\[])'
)
MAX_HEAD = 512


class CallReader:
    """Reads one object. `raw` is its text so far, for falling back to content."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._object = ValueScanner()
        self._arguments: ValueScanner | None = None
        self.raw = ""
        self.told = False

    @property
    def done(self) -> bool:
        return self._object.done

    def feed(self, text: str) -> tuple[list[ToolCallDelta], str]:
        """(pieces of the call, text behind the object)."""
        used = self._object.feed(text)
        mine, rest = text[:used], text[used:]
        self.raw += mine
        pieces = self._arguments_piece(mine) if self.told else self._begin()
        if self.done and not self.told:
            pieces = self._whole()
        return pieces, rest

    def _begin(self) -> list[ToolCallDelta]:
        head = HEAD.match(self.raw[:MAX_HEAD])
        if head is None:
            return []
        self.told = True
        self._arguments = ValueScanner()
        begin = begin_call(self._index, msgspec.json.decode(head[1], type=str))
        return [begin, *self._arguments_piece(self.raw[head.end() :])]

    def _arguments_piece(self, text: str) -> list[ToolCallDelta]:
        if self._arguments is None or self._arguments.done:
            return []
        piece = text[: self._arguments.feed(text)]
        return [more_arguments(self._index, piece)] if piece else []

    def _whole(self) -> list[ToolCallDelta]:
        """Members in another order: parse the finished object."""
        try:
            found = msgspec.json.decode(self.raw)
        except (msgspec.DecodeError, RecursionError):
            return []
        if not isinstance(found, dict) or not isinstance(found.get("name"), str):
            return []
        self.told = True
        arguments = found.get("arguments", found.get("parameters", {}))
        text = arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode()
        return [begin_call(self._index, found["name"]), more_arguments(self._index, text)]
