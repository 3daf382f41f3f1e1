"""Calls whose JSON the guide forces: `tool_choice` required or a named function."""

from __future__ import annotations

from typing import Any

from fd_core.serving.tools.base import ToolNews, ToolStream, begin_call, more_arguments
from fd_core.serving.tools.call import CallReader


class NamedCallStream(ToolStream):
    """The whole text is the arguments of one function."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._begun = False

    def feed(self, text: str) -> ToolNews:
        calls = [] if self._begun or not text else [begin_call(0, self._name)]
        self._begun = self._begun or bool(text)
        return ToolNews(calls=[*calls, more_arguments(0, text)] if text else calls)

    def finish(self) -> ToolNews:
        return ToolNews()


class RequiredCallStream(ToolStream):
    """The whole text is an array of call objects."""

    def __init__(self) -> None:
        self._call: CallReader | None = None
        self._count = 0

    def feed(self, text: str) -> ToolNews:
        news = ToolNews()
        while text:
            if self._call is None:
                text = text.lstrip(" \t\r\n,[]")
                if not text:
                    break
                self._call = CallReader(self._count)
            pieces, text = self._call.feed(text)
            news.calls += pieces
            if self._call.done:
                self._count += 1
                self._call = None
        return news

    def finish(self) -> ToolNews:
        call, self._call = self._call, None
        return ToolNews(call.raw) if call is not None and not call.told else ToolNews()


def required_schema(tools: list[dict[str, Any]], parallel: bool) -> dict[str, Any]:
    """An array of at least one call of a known function with its own parameters."""
    one = {"anyOf": [_call_schema(tool["function"]) for tool in tools]}
    schema: dict[str, Any] = {"type": "array", "minItems": 1, "items": one}
    return schema if parallel else {**schema, "maxItems": 1}


def _call_schema(function: dict[str, Any]) -> dict[str, Any]:
    members = {"name": {"const": function["name"]}, "arguments": parameters_schema(function)}
    return {
        "type": "object",
        "properties": members,
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def parameters_schema(function: dict[str, Any]) -> dict[str, Any]:
    return function.get("parameters") or {"type": "object"}
