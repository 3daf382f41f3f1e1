"""Structured output fields to the engine's `guided` pair (kind, text)."""

from __future__ import annotations

from typing import Any

import msgspec

from fd_core.serving.errors import RequestError
from fd_core.serving.inputs.limits import Limits, at_most, refuse, text_bytes
from fd_core.serving.protocol.common import ResponseFormat, SamplingFields, StructuredOutputs

Guide = tuple[str, str]
MAX_DEPTH = 64


def guide(fields: SamplingFields, limits: Limits) -> Guide | None:
    """The one guide a request names. More than one is refused; sizes are bounded before use."""
    found = {**_structured(fields.structured_outputs), **_guided(fields), **_format(fields.response_format)}
    if len(found) > 1:
        raise refuse("structured_outputs", "one structured output per request", sorted(found))
    for param, (kind, value) in found.items():
        return kind, _text(param, kind, value, limits)
    return None


def _structured(given: StructuredOutputs | None) -> dict[str, tuple[str, Any]]:
    if given is None:
        return {}
    found = {
        f"structured_outputs.{kind}": (kind, value)
        for kind in ("json", "regex", "choice", "grammar")
        if (value := getattr(given, kind)) is not None
    }
    if given.json_object:
        found["structured_outputs.json_object"] = ("json", {"type": "object"})
    if not found:
        raise refuse("structured_outputs", "one of json, regex, choice, grammar, json_object", "none")
    return found


def _guided(fields: SamplingFields) -> dict[str, tuple[str, Any]]:
    kinds = ("json", "regex", "choice", "grammar")
    named = {f"guided_{kind}": (kind, getattr(fields, f"guided_{kind}")) for kind in kinds}
    return {param: (kind, value) for param, (kind, value) in named.items() if value is not None}


def _format(given: ResponseFormat | None) -> dict[str, tuple[str, Any]]:
    if given is None or given.type == "text":
        return {}
    if given.type == "json_object":
        return {"response_format": ("json", {"type": "object"})}
    if given.json_schema is None or given.json_schema.schema is None:
        raise refuse("response_format.json_schema", "an object with a schema", None, "missing_field")
    return {"response_format": ("json", given.json_schema.schema)}


def _text(param: str, kind: str, value: Any, limits: Limits) -> str:
    if kind == "choice":
        at_most(param, value, limits.max_choices)
        if not value or "" in value:
            raise refuse(param, "a list of texts, none empty", value)
    if isinstance(value, str) and not value:
        raise refuse(param, "a text that is not empty", value)
    if kind == "json" and isinstance(value, str):
        value = _parsed(param, value)
    if kind == "json":
        _check_depth(param, value, limits)
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text_bytes(param, text, limits.max_guide_bytes)


def _parsed(param: str, text: str) -> Any:
    try:
        found = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise RequestError(
            f"{param}: want a JSON schema, found text that is no JSON: {error}", param=param
        ) from error
    if not isinstance(found, (dict, bool)):
        raise refuse(param, "a JSON schema (an object)", found)
    return found


def _check_depth(param: str, schema: Any, limits: Limits) -> None:
    """Nesting and `enum` length; the grammar compiler's own limits come after."""
    level: list[Any] = [schema]
    for _ in range(MAX_DEPTH):
        for node in level:
            if isinstance(node, list):
                at_most(param, node, limits.max_choices)
        level = [child for node in level for child in _children(node)]
        if not level:
            return
    raise refuse(param, f"a schema nested at most {MAX_DEPTH} deep", "a deeper one")


def _children(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return list(node.values())
    return node if isinstance(node, list) else []
