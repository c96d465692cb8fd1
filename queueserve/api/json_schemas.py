"""JSON schemas: closed, and moved into others. Pure."""

from __future__ import annotations

from typing import Any

_VALUES = {"const", "default", "enum", "examples"}  # hold values, not schemas
_SPEAKS_OF_OTHERS = {
    *("additionalProperties", "patternProperties", "unevaluatedProperties"),
    *("$ref", "allOf", "anyOf", "oneOf"),
}


def closed(schema: Any) -> Any:
    """Return the schema for objects of the properties that it names, unless it speaks of others.

    JSON Schema allows any other, and a weak model would take the liberty.
    """
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: value if key in _VALUES else closed(value) for key, value in schema.items()}
    names_all = schema.get("type") == "object" and isinstance(schema.get("properties"), dict)
    if names_all and not schema.keys() & _SPEAKS_OF_OTHERS:
        out["additionalProperties"] = False
    return out


def placed(schema: Any, name: str, definitions: dict[str, Any]) -> Any:
    """Return the schema for use inside another one; its references are from its own root."""
    if not _has_reference(schema):
        return schema
    root = f"#/$defs/{name}"
    definitions[name] = _moved(schema, root)
    return {"$ref": root}


def _has_reference(schema: Any) -> bool:
    if isinstance(schema, dict):
        return isinstance(schema.get("$ref"), str) or any(map(_has_reference, schema.values()))
    return isinstance(schema, list) and any(map(_has_reference, schema))


def _moved(schema: Any, root: str) -> Any:
    """Return the schema with its references into itself as they are from `root`."""
    if isinstance(schema, list):
        return [_moved(part, root) for part in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _moved(value, root) for key, value in schema.items()}
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = root + reference.removeprefix("#")
    return moved
