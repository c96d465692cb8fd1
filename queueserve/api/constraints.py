"""A request's constraint on its output, whichever of the fields for it it uses. Pure."""

from __future__ import annotations

from typing import Any

import orjson

from queueserve.api.json_schemas import closed
from queueserve.api.limits import MAX_CONSTRAINT_CHARS
from queueserve.api.schemas.constraints import JsonSchema, ResponseFormat, StructuredOutputs
from queueserve.api.schemas.generation import GenerationRequest
from queueserve.errors import InvalidRequestError
from queueserve.protocol import Constraint, ConstraintKind


def constraint_of(request: GenerationRequest) -> Constraint | None:
    """Return what the output must match; None if it is free.

    Raises InvalidRequestError for more than one constraint, and for one that is too long. Whether
    it makes sense is found out by the worker, which has the compiler.
    """
    given = [
        constraint
        for constraint in (
            _response_format(request.response_format),
            _structured_outputs(request.structured_outputs),
            _one("json_schema", request.guided_json, "guided_json"),
            _one("regex", request.guided_regex, "guided_regex"),
            _one("choice", request.guided_choice, "guided_choice"),
            _one("grammar", request.guided_grammar, "guided_grammar"),
        )
        if constraint is not None
    ]
    if len(given) > 1:
        first, second = given[0].param, given[1].param
        raise InvalidRequestError(
            f"{first} and {second} cannot be used together: the output can have one constraint.",
            param=second,
        )
    return given[0] if given else None


def json_schema(schema: JsonSchema, param: str) -> Constraint:
    """Return the constraint to a JSON schema. Raises InvalidRequestError."""
    text = schema if isinstance(schema, str) else orjson.dumps(closed(schema)).decode()
    if len(text) > MAX_CONSTRAINT_CHARS:
        raise InvalidRequestError(
            f"The schema has more than {MAX_CONSTRAINT_CHARS} characters.", param=param
        )
    return Constraint("json_schema", text, param)


def _one(kind: ConstraintKind, value: Any, param: str) -> Constraint | None:
    if value is None:
        return None
    if kind == "json_schema":
        return json_schema(value, param)
    return Constraint(
        kind, value if isinstance(value, str) else orjson.dumps(value).decode(), param
    )


def _response_format(wanted: ResponseFormat | None) -> Constraint | None:
    param = "response_format"
    if wanted is None or wanted.type == "text":
        return None
    if wanted.json_schema is None or wanted.type == "json_object":
        return Constraint("json_object", "", param)
    return json_schema(wanted.json_schema.schema_, param)


def _structured_outputs(wanted: StructuredOutputs | None) -> Constraint | None:
    param = "structured_outputs"
    if wanted is None:
        return None
    if wanted.json_object:
        return Constraint("json_object", "", param)
    return (
        _one("json_schema", wanted.json_, param)
        or _one("regex", wanted.regex, param)
        or _one("choice", wanted.choice, param)
        or _one("grammar", wanted.grammar, param)
    )
