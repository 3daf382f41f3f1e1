"""A JSON value found in a stream of text, character by character."""

from __future__ import annotations


class ValueScanner:
    """Follows one JSON value; says where it ends. Grammar is not checked, only nesting and strings."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._scalar = False
        self.done = False

    def feed(self, text: str) -> int:
        """How many characters of `text` belong to the value (all, while it is not done)."""
        for at, char in enumerate(text):
            if self._step(char):
                return at
            if self.done:
                return at + 1
        return len(text)

    def _step(self, char: str) -> bool:
        """Take one character; True if it lies behind the end of a bare value (a number, true)."""
        if self._in_string:
            self._string(char)
        elif char == '"':
            self._in_string = True
        elif char in "{[":
            self._depth += 1
        elif self._depth == 0 and self._scalar and char in ",]} \n\t\r":
            self.done = True
            return True
        elif char in "}]":
            self._depth -= 1
            self.done = self._depth <= 0
        elif self._depth == 0 and not char.isspace():
            self._scalar = True
        return False

    def _string(self, char: str) -> None:
        if self._escaped:
            self._escaped = False
        elif char == "\\":
            self._escaped = True
        elif char == '"':
            self._in_string = False
            self.done = self._depth == 0
