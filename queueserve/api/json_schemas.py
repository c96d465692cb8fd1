"""JSON schemas: closed, and moved into others. Pure."""

from __future__ import annotations

from typing import Any

from queueserve.subschemas import changed

_SPEAKS_OF_OTHERS = {
    *("additionalProperties", "patternProperties", "unevaluatedProperties"),
    *("$ref", "allOf", "anyOf", "oneOf"),
}


def closed(schema: Any) -> Any:
    """Return the schema for objects of the properties that it names, unless it speaks of others.

    JSON Schema allows any other, and a weak model would take the liberty.
    """
    if not isinstance(schema, dict):
        return schema
    out = changed(schema, closed)
    names_all = schema.get("type") == "object" and isinstance(schema.get("properties"), dict)
    if names_all and not schema.keys() & _SPEAKS_OF_OTHERS:
        out["additionalProperties"] = False
    return out


def placed(schema: Any, name: str, definitions: dict[str, Any]) -> Any:
    """Return the schema for use inside another one; its references are from its own root."""
    root = f"#/$defs/{name}"
    moved = _moved(schema, root)
    if moved == schema:
        return schema
    definitions[name] = moved
    return {"$ref": root}


def _moved(schema: Any, root: str) -> Any:
    """Return the schema with its references into itself as they are from `root`."""
    if not isinstance(schema, dict):
        return schema
    moved = changed(schema, lambda part: _moved(part, root))
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = root + reference.removeprefix("#")
    return moved
