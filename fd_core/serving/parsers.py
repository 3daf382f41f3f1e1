"""The reasoning and tool parsers of a served model."""

from __future__ import annotations

from typing import Any

from fd_core.engine.client import EngineClient
from fd_core.serving.inputs.text_model import TextModel
from fd_core.serving.reasoning import ReasoningParserManager
from fd_core.serving.registry import ParserRegistry, normal
from fd_core.serving.state import Served
from fd_core.serving.tools import ToolParserManager

OFF = "none"


def with_parsers(engine: EngineClient, text: TextModel, reasoning: str | None, tools: str | None) -> Served:
    """Parsers by name; unnamed ones follow from the tags in the template; "none" is off."""
    if text.template is not None:
        reasoning = reasoning or ("think" if text.template.takes("</think>") else None)
        tools = tools or ("hermes" if text.template.takes("<tool_call>") else None)
    return Served(
        engine,
        text,
        _parser(ReasoningParserManager, "fd_reasoning_parsers", reasoning, text),
        _parser(ToolParserManager, "fd_tool_parsers", tools, text),
    )


def _parser(registry: ParserRegistry[Any], hook: str, name: str | None, text: TextModel) -> Any:
    """A fresh parser; plug-ins are asked only for names that are not ours."""
    if name is None or name == OFF:
        return None
    if normal(name) not in registry.names():
        from fd_core.host.plugins import plugin_host

        registry.add_all(plugin_host().extensions(hook))
    return registry.get(name)(text.tokenizer)
