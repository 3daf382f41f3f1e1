"""Reasoning parsers by name."""

from fd_core.serving.reasoning.base import ReasoningParser, ReasoningParserManager, ReasoningStream
from fd_core.serving.reasoning.think import OpenThinkParser, Qwen3ReasoningParser, ThinkParser

__all__ = [
    "OpenThinkParser",
    "Qwen3ReasoningParser",
    "ReasoningParser",
    "ReasoningParserManager",
    "ReasoningStream",
    "ThinkParser",
]
