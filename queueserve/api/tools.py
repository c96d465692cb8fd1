"""Which tools a request offers, what binds the output to calls, and how an answer is parsed. Pure.

A call that must come is bound: its JSON schema is a constraint, made of the parameters of the tools
that may be called, so the output is JSON, whatever dialect the model speaks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from queueserve.api.constraints import json_schema
from queueserve.api.parsers import REASONING, TOOLS, Parser, make_parser
from queueserve.api.schemas.chat import ChatCompletionRequest
from queueserve.api.schemas.tools import AllowedTools, Function, FunctionName, NamedTool
from queueserve.errors import InvalidRequestError
from queueserve.protocol import Constraint, ModelCard

MAX_BOUND_CALLS = 8
"""Calls that a bound answer may hold: a weak model would not come to an end."""

_NOTHING: dict[str, Any] = {"properties": {}}
_VALUES = {"const", "default", "enum", "examples"}  # hold values, not schemas
_SPEAKS_OF_OTHERS = {
    *("additionalProperties", "patternProperties", "unevaluatedProperties"),
    *("$ref", "allOf", "anyOf", "oneOf"),
}


@dataclass(frozen=True, slots=True)
class Offer:
    """The tools that may be called, and whether one must."""

    functions: Sequence[Function] = ()
    required: bool = False
    parallel: bool = True

    @property
    def tools(self) -> tuple[Mapping[str, Any], ...]:
        """The tools as chat templates take them."""
        return tuple(
            {
                "type": "function",
                "function": function.model_dump(exclude_none=True, exclude={"strict"}),
            }
            for function in self.functions
        )

    @property
    def constraint(self) -> Constraint | None:
        """What binds the output to a call, or to a list of calls; None if it is free.

        Raises InvalidRequestError for schemas that are too long.
        """
        if not self.required:
            return None
        return json_schema(self._schema(), "tool_choice")

    def _schema(self) -> dict[str, Any]:
        definitions: dict[str, Any] = {}
        calls = [_call_schema(function, definitions) for function in self.functions]
        schema = calls[0] if len(calls) == 1 else {"anyOf": calls}
        if self.parallel:
            schema = {"type": "array", "items": schema, "minItems": 1, "maxItems": MAX_BOUND_CALLS}
        return {**schema, "$defs": definitions} if definitions else schema


@dataclass(frozen=True, slots=True)
class Parsing:
    """How the outputs of one request are taken apart: names of parsers, None for none."""

    tools: str | None = None
    reasoning: str | None = None
    names: tuple[str, ...] = ()
    parallel: bool = True  # else only the first call counts
    legacy: bool = False  # calls are a `function_call`

    def __bool__(self) -> bool:
        """Whether there is anything but content to find."""
        return self.tools is not None or self.reasoning is not None

    def parser(self) -> Parser:
        """Return a new parser, for one output."""
        return make_parser(
            tools=self.tools,
            names=self.names,
            reasoning=self.reasoning,
            parallel=self.parallel,
        )


def offer_of(request: ChatCompletionRequest, card: ModelCard) -> Offer:
    """Return what a request offers. Raises InvalidRequestError if the model takes no tools."""
    mode, names, one = _choice(request)
    if not request.offered or mode == "none":
        return Offer()
    if card.tool_parser not in TOOLS:
        param = "tools" if request.tools else "functions"
        raise InvalidRequestError(f"The model {card.name!r} takes no tools.", param=param)
    functions = [tool for tool in request.offered if names is None or tool.name in names]
    required = mode == "required"
    parallel = request.parallel_tool_calls
    if parallel is None:  # a model without a dialect was not trained for calls: it repeats itself
        parallel = not (required and card.tool_parser == "json")
    return Offer(functions, required, parallel and not one and not request.functions)


def parsing_of(
    request: ChatCompletionRequest, card: ModelCard, constraint: Constraint | None
) -> Parsing:
    """Return how the answers to a request are parsed.

    `constraint` is what binds the output: it leaves no room for reasoning or another dialect.
    """
    offer = offer_of(request, card)
    tools = card.tool_parser if offer.functions else None
    reasoning = card.reasoning_parser if card.reasoning_parser in REASONING else None
    if constraint is not None:
        tools, reasoning = ("json" if offer.required else None), None
    names = tuple(function.name for function in offer.functions)
    return Parsing(tools, reasoning, names, offer.parallel, legacy=bool(request.functions))


def _choice(
    request: ChatCompletionRequest,
) -> tuple[Literal["none", "auto", "required"], set[str] | None, bool]:
    """Return the mode, the names that may be called (None: all), and whether one call is all."""
    match request.function_call if request.functions else request.tool_choice:
        case None:
            return "auto", None, False
        case FunctionName(name=name) | NamedTool(function=FunctionName(name=name)):
            return "required", {name}, True
        case AllowedTools(allowed_tools=allowed):
            return allowed.mode, {tool.function.name for tool in allowed.tools}, False
        case mode:
            return mode, None, False


def _call_schema(function: Function, definitions: dict[str, Any]) -> dict[str, Any]:
    parameters = _closed({"type": "object", **(function.parameters or _NOTHING)})
    if _has_reference(parameters):  # its references are from its own root, which moves
        root = f"#/$defs/{function.name}"
        definitions[function.name] = _moved(parameters, root)
        parameters = {"$ref": root}
    return {
        "type": "object",
        "properties": {"name": {"const": function.name}, "arguments": parameters},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _closed(schema: Any) -> Any:
    """Return the schema for objects of the properties that it names, unless it speaks of others.

    JSON Schema allows any other, and a weak model would take the liberty.
    """
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: value if key in _VALUES else _closed(value) for key, value in schema.items()}
    names_all = schema.get("type") == "object" and isinstance(schema.get("properties"), dict)
    if names_all and not schema.keys() & _SPEAKS_OF_OTHERS:
        closed["additionalProperties"] = False
    return closed


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
