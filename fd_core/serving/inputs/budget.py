"""The budget of one template run: time, steps, output, and the size of every value made."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any


class TemplateError(ValueError):
    """A chat template that is wrong, was refused, or went over its budget."""


class Budget:
    """Counts what one rendering does; raises TemplateError at the first excess.

    Limits grow with the size of `inputs` (messages already bounded by the request's own limits).
    """

    MAX_SECONDS = 0.5
    MAX_OUTPUT = 4 << 20  # characters written, those into variables included
    MAX_VALUE = 8 << 20  # characters and elements of one value, nested ones included
    MAX_RANGE = 10_000
    MAX_BITS = 4096  # of an integer
    ELEMENT = 32  # what an element of a container weighs, in characters

    def __init__(self, seconds: float = MAX_SECONDS, inputs: object = None) -> None:
        self._deadline = time.thread_time() + seconds
        self._value_limit = sys.maxsize
        allowance = 2 * self.size(inputs)
        self._output_left = self.MAX_OUTPUT + allowance
        self._value_limit = self.MAX_VALUE + allowance

    def tick(self) -> None:
        if time.thread_time() > self._deadline:
            raise TemplateError(f"the chat template ran longer than {self.MAX_SECONDS} s")

    def wrote(self, size: int) -> None:
        self._output_left -= size
        if self._output_left < 0:
            raise TemplateError(f"the chat template wrote more than {self.MAX_OUTPUT} characters")
        self.tick()

    def allow(self, size: int) -> None:
        """Refuse a value of `size` before it is made."""
        if size > self._value_limit:
            raise TemplateError("the chat template made a value that is too large")
        self.tick()

    def checked(self, value: Any) -> Any:
        """`value`, if its whole expansion is within the limit."""
        self.allow(self.size(value))
        return value

    def size(self, value: Any) -> int:
        """Characters and elements of `value` as if it were printed; stops above the limit."""
        total = 0
        stack = [value]
        while stack and total <= self._value_limit:
            item = stack.pop()
            total += self.ELEMENT
            if isinstance(item, (str, bytes)):
                total += len(item)
            elif isinstance(item, Mapping):
                stack.extend(item.keys())
                stack.extend(item.values())
            elif isinstance(item, (list, tuple, set, frozenset)):
                stack.extend(item)
            elif isinstance(item, int):
                self.check_int(item)
        return total

    def check_int(self, value: int) -> None:
        if value.bit_length() > self.MAX_BITS:
            raise TemplateError("the chat template made an integer that is too large")


_current: ContextVar[Budget] = ContextVar("fd_template_budget")


def current() -> Budget:
    """The budget of the rendering in progress; without one (while compiling) nothing may run."""
    try:
        return _current.get()
    except LookupError:
        raise TemplateError("template code may run only while rendering") from None


class running:
    """Makes `budget` the current one."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget

    def __enter__(self) -> Budget:
        self._token = _current.set(self._budget)
        return self._budget

    def __exit__(self, *exc: object) -> None:
        _current.reset(self._token)


def ticking(iterable: Iterable[Any]) -> Iterator[Any]:
    """The same elements, one tick each."""
    budget = current()
    for item in iterable:
        budget.tick()
        yield item
