"""Stop strings over a stream of text pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Releases text as soon as no stop string can begin in it.

    The match that is complete first wins (of two that end together, the longer), so the result does
    not depend on how the text was cut into pieces.
    """

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        self._stops = tuple(s for s in stops if s)
        self._include = include
        self._held = ""
        self.matched: str | None = None

    def feed(self, text: str) -> str:
        """Text to show now; empty for good once a stop string was found."""
        if self.matched is not None:
            return ""
        if not self._stops:
            return text
        buffer = self._held + text
        found = [(at + len(s), at, s) for s in self._stops if (at := buffer.find(s)) >= 0]
        if found:
            end, at, self.matched = min(found)
            self._held = ""
            return buffer[:end] if self._include else buffer[:at]
        keep = max(held_length(buffer, s) for s in self._stops)
        self._held = buffer[len(buffer) - keep :]
        return buffer[: len(buffer) - keep]

    def flush(self) -> str:
        """What was held back, when no more text can come."""
        held, self._held = self._held, ""
        return held


def held_length(text: str, mark: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `mark`."""
    for size in range(min(len(mark) - 1, len(text)), 0, -1):
        if text.endswith(mark[:size]):
            return size
    return 0
