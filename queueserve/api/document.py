"""What /openapi.json says beyond what FastAPI finds out by itself: errors, streams and API keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from queueserve.api.auth import OPEN_PATHS
from queueserve.api.errors_anthropic import is_anthropic

_TEXT = {"type": "string"}
_TEXT_OR_NULL = {"anyOf": [_TEXT, {"type": "null"}]}

_ERROR: dict[str, Any] = {
    "type": "object",
    "description": "What is wrong. `code` is stable; `param` names the field at fault, if one is.",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": _TEXT,
                "type": {"enum": ["invalid_request_error", "rate_limit_error", "server_error"]},
                "param": _TEXT_OR_NULL,
                "code": _TEXT_OR_NULL,
            },
        }
    },
}
_ANTHROPIC_ERROR: dict[str, Any] = {
    "type": "object",
    "description": "What is wrong, as Anthropic's clients expect it.",
    "required": ["type", "error"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": _TEXT, "message": _TEXT},
        },
    },
}
_EVENT = {
    "description": "One of the events with `stream`. A failure after the first is one, too.",
    "type": "object",
    "required": ["data"],
    "properties": {"event": _TEXT, "data": _TEXT},
}


def complete(document: dict[str, Any], *, keys: bool) -> None:
    """Make FastAPI's document true. `keys`: requests need an API key."""
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own answer, never given
        schemas.pop(name, None)
    schemas["Error"], schemas["AnthropicError"] = _ERROR, _ANTHROPIC_ERROR
    for path, operation in _operations(document):
        _add_errors(operation["responses"], "AnthropicError" if is_anthropic(path) else "Error")
        if "stream" in _body(operation, schemas).get("properties", {}):
            content = operation["responses"]["200"].setdefault("content", {})
            content.setdefault("application/json", {"schema": {"type": "object"}})
            content["text/event-stream"] = {"schema": _EVENT}
    if keys:
        _ask_for_keys(document, components)


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, operations in document["paths"].items():
        for operation in operations.values():
            yield path, operation


def _body(operation: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of the operation's body; empty if it has none."""
    content = operation.get("requestBody", {}).get("content", {})
    reference = content.get("application/json", {}).get("schema", {}).get("$ref", "")
    schema: dict[str, Any] = schemas.get(reference.rpartition("/")[2], {})
    return schema


def _add_errors(responses: dict[str, Any], schema: str) -> None:
    responses.pop("422", None)
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    responses["4XX"] = {"description": "The request must change.", "content": content}
    responses["5XX"] = {"description": "The server failed, or it is not ready.", "content": content}


def _ask_for_keys(document: dict[str, Any], components: dict[str, Any]) -> None:
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    document["security"] = [{"bearer": []}, {"x-api-key": []}]
    for path, operation in _operations(document):
        if path in OPEN_PATHS:
            operation["security"] = []
