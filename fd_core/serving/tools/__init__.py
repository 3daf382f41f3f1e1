"""Tool-call parsers by name."""

from fd_core.serving.tools.base import (
    ExtractedToolCallInformation,
    ToolNews,
    ToolParser,
    ToolParserManager,
    ToolStream,
)
from fd_core.serving.tools.hermes import HermesToolParser

__all__ = [
    "ExtractedToolCallInformation",
    "HermesToolParser",
    "ToolNews",
    "ToolParser",
    "ToolParserManager",
    "ToolStream",
]
