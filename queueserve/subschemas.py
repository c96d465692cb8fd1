"""Where a JSON schema holds others: in some keywords, and under the user's own names in others.

So what a property is called means nothing, and what const, enum, default and examples hold are
values. The keywords are those of JSON Schema 2020-12, and older ones that it has replaced. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_ONE = {  # a schema, or a list of them
    *("additionalItems", "additionalProperties", "allOf", "anyOf", "contains", "contentSchema"),
    *("else", "if", "items", "not", "oneOf", "prefixItems", "propertyNames", "then"),
    *("unevaluatedItems", "unevaluatedProperties"),
}
_NAMED = {  # name → schema
    *("$defs", "definitions", "dependencies", "dependentSchemas"),
    *("patternProperties", "properties"),
}


def changed(schema: dict[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """Return a copy of the schema, with `change` of each schema that it holds in its place.

    What is no schema there, but true or something wrong, is given to `change` as well.
    """
    out = dict(schema)
    for keyword, held in schema.items():
        if keyword in _NAMED and isinstance(held, dict):
            out[keyword] = {name: change(part) for name, part in held.items()}
        elif keyword in _ONE:
            many = isinstance(held, list)
            out[keyword] = [change(part) for part in held] if many else change(held)
    return out
