"""`/openapi.json`: one hand-written line a route, schemas from the msgspec structures themselves."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgspec

from fd_core import __version__
from fd_core.serving.protocol.chat import ChatChunk, ChatRequest, ChatResponse
from fd_core.serving.protocol.common import ErrorBody
from fd_core.serving.protocol.completion import CompletionRequest, CompletionResponse
from fd_core.serving.protocol.misc import (
    DetokenizeRequest,
    DetokenizeResponse,
    Health,
    Load,
    ModelCard,
    ModelList,
    TokenizeRequest,
    TokenizeResponse,
    Version,
)

# (method, path) -> (summary, request or None, response: a structure or a media type)
OPERATIONS: dict[tuple[str, str], tuple[str, Any, Any]] = {
    ("POST", "/v1/chat/completions"): ("Answer a conversation", ChatRequest, ChatResponse),
    ("POST", "/v1/completions"): ("Complete prompts", CompletionRequest, CompletionResponse),
    ("GET", "/v1/models"): ("List models", None, ModelList),
    ("GET", "/v1/models/{model}"): ("Describe a model", None, ModelCard),
    ("POST", "/tokenize"): ("Text or messages to token ids", TokenizeRequest, TokenizeResponse),
    ("POST", "/detokenize"): ("Token ids to text", DetokenizeRequest, DetokenizeResponse),
    ("GET", "/health"): ("200 while the engine lives, else 503", None, Health),
    ("GET", "/health/live"): ("200 while the process need not be restarted, else 503", None, Health),
    ("GET", "/health/ready"): ("200 where requests are welcome, else 503", None, Health),
    ("GET", "/ping"): ("As /health", None, Health),
    ("POST", "/ping"): ("As /health", None, Health),
    ("GET", "/version"): ("Versions, model and platform", None, Version),
    ("GET", "/metrics"): ("Figures in Prometheus' text format", None, "text/plain"),
    ("GET", "/load"): ("What the server is busy with", None, Load),
    ("GET", "/openapi.json"): ("This description", None, "application/json"),
    ("GET", "/"): ("A page to try the model", None, "text/html"),
}
STREAMED = {"/v1/chat/completions": ChatChunk, "/v1/completions": CompletionResponse}
REFUSALS = ("400", "401", "404", "405", "408", "413", "415", "429", "500", "503")
REF = "#/components/schemas/{name}"


@lru_cache(maxsize=1)
def document() -> dict[str, Any]:
    structures = {t for row in OPERATIONS.values() for t in row[1:] if isinstance(t, type)}
    ordered = sorted({*structures, *STREAMED.values(), ErrorBody}, key=lambda t: t.__name__)
    refs, schemas = msgspec.json.schema_components(ordered, ref_template=REF)
    by_type = dict(zip(ordered, refs, strict=True))
    paths: dict[str, Any] = {}
    for (method, path), row in OPERATIONS.items():
        paths.setdefault(path, {})[method.lower()] = _operation(method, path, row, by_type)
    return {
        "openapi": "3.1.0",
        "info": {"title": "fd-core", "version": __version__, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


def _operation(method: str, path: str, row: tuple[str, Any, Any], refs: dict[Any, Any]) -> dict[str, Any]:
    summary, request, response = row
    name = path.strip("/").replace("/", "_").replace("{", "").replace("}", "") or "page"
    refusal = {"description": "refused", "content": _json(refs[ErrorBody])}
    found: dict[str, Any] = {
        "operationId": f"{method.lower()}_{name}",
        "summary": summary,
        "responses": {"200": _success(path, response, refs), **dict.fromkeys(REFUSALS, refusal)},
    }
    if request is not None:
        found["requestBody"] = {"required": True, "content": _json(refs[request])}
    if "{model}" in path:
        found["parameters"] = [
            {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
        ]
    return found


def _success(path: str, response: Any, refs: dict[Any, Any]) -> dict[str, Any]:
    content = {response: {}} if isinstance(response, str) else _json(refs[response])
    if path in STREAMED:
        content["text/event-stream"] = {"schema": refs[STREAMED[path]]}
    return {"description": "fine", "content": content}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
