"""Chat messages of a request as the plain dicts that templates read."""

from __future__ import annotations

from typing import Any

import msgspec

from fd_core.serving.errors import RequestError
from fd_core.serving.inputs.limits import Limits, at_most, refuse
from fd_core.serving.protocol.chat import Message, Tool, ToolCall


def plain_messages(messages: list[Message], limits: Limits) -> list[dict[str, Any]]:
    """Checked and normalised: `developer` becomes `system`, text parts one text."""
    if not messages:
        raise refuse("messages", "at least one message", [])
    at_most("messages", messages, limits.max_messages)
    _check_order(messages)
    return [_plain(message, f"messages[{at}]", limits) for at, message in enumerate(messages)]


def _check_order(messages: list[Message]) -> None:
    """A tool result must follow the assistant's call."""
    calling = False
    for at, message in enumerate(messages):
        if message.role == "tool" and not calling:
            raise refuse(
                f"messages[{at}].role", "a tool message after an assistant message with tool_calls", "tool"
            )
        calling = bool(message.tool_calls) or (calling and message.role == "tool")


def _plain(message: Message, param: str, limits: Limits) -> dict[str, Any]:
    found: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role}
    found["content"] = _content(message, param)
    if message.name is not None:
        found["name"] = message.name
    if message.tool_call_id is not None:
        found["tool_call_id"] = message.tool_call_id
    if reasoning := message.reasoning_content or message.reasoning:
        found["reasoning_content"] = reasoning
    if message.tool_calls:
        at_most(f"{param}.tool_calls", message.tool_calls, limits.max_tools)
        found["tool_calls"] = [_call(call, f"{param}.tool_calls") for call in message.tool_calls]
    return found


def _content(message: Message, param: str) -> str:
    content = message.content
    if content is None:
        if message.role == "assistant":
            return ""
        raise refuse(f"{param}.content", "a text", None, "missing_field")
    if isinstance(content, str):
        return content
    for part in content:
        if part.type != "text" or part.text is None:
            raise RequestError(
                f"{param}.content: this server takes parts of type 'text' with a text, found {part.type!r}",
                param=f"{param}.content",
                code="unsupported_content",
            )
    return "\n".join(part.text or "" for part in content)


def _call(call: ToolCall, param: str) -> dict[str, Any]:
    """Arguments go to the template as an object, which is what templates print."""
    try:
        arguments = msgspec.json.decode(call.function.arguments or "{}")
    except (msgspec.DecodeError, RecursionError) as error:
        raise RequestError(f"{param}: arguments are no JSON: {error}", param=param) from error
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


def plain_tools(tools: list[Tool] | None, limits: Limits) -> list[dict[str, Any]] | None:
    if not tools:
        return None
    at_most("tools", tools, limits.max_tools)
    for tool in tools:
        name = tool.function.name
        if not 1 <= len(name) <= 64 or not all(c.isalnum() or c in "_-." for c in name):
            raise refuse("tools", "function names of 1..64 letters, digits, '_', '-', '.'", name)
    found = msgspec.to_builtins(tools)
    return list(found)


def text_size(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> int:
    """Characters that a template will print, roughly, without printing them."""
    size = 0
    stack: list[Any] = [messages, tools]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            size += len(item)
        elif isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
    return size
