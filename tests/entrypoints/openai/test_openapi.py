"""The description matches the routes and the structures."""

from __future__ import annotations

import json

import msgspec

from fd_core.serving.http.routes import ROUTES
from fd_core.serving.openapi import OPERATIONS, document
from fd_core.serving.protocol.chat import ChatRequest
from fd_core.serving.protocol.completion import CompletionRequest


def references(node) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        return own.union(*map(references, node.values()))
    return set().union(*map(references, node)) if isinstance(node, list) else set()


def test_routes_are_described():
    routes = {(method, path.replace(":path", "")) for method, path, _ in ROUTES}
    assert routes == set(OPERATIONS)


def test_document_is_consistent():
    found = document()
    names = found["components"]["schemas"]
    assert {r.rsplit("/", 1)[1] for r in references(found)} <= set(names)
    ids = [op["operationId"] for path in found["paths"].values() for op in path.values()]
    assert len(ids) == len(set(ids))
    assert json.loads(json.dumps(found)) == found


def test_fields_are_those_of_the_structures():
    schemas = document()["components"]["schemas"]
    for kind in (ChatRequest, CompletionRequest):
        fields = {f.encode_name for f in msgspec.structs.fields(kind)}
        assert set(schemas[kind.__name__]["properties"]) == fields


def test_it_is_served(server):
    with server.http() as http:
        answer = http.get("/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["openapi"].startswith("3.")
