"""Which tools a request offers, what binds the output to calls, and how an answer is parsed. Pure.

A call that must come is bound: its JSON schema is a constraint, made of the parameters of the tools
that may be called, so the output is JSON, whatever dialect the model speaks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

import orjson

from queueserve.api.constraints import json_schema
from queueserve.api.json_schemas import closed, placed
from queueserve.api.limits import MAX_DEPTH
from queueserve.api.parsers import CALLS, REASONING, TOOLS, Parser, make_parser
from queueserve.api.schemas.chat import ChatCompletionRequest
from queueserve.api.schemas.tools import AllowedTools, Function, FunctionName, NamedTool
from queueserve.api.schemas.values import is_deep
from queueserve.errors import InvalidRequestError
from queueserve.protocol import Constraint, ModelCard

MAX_BOUND_CALLS = 8
"""Calls that a bound answer may hold: a weak model would not come to an end."""

_NOTHING: dict[str, Any] = {"properties": {}}


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

    def constraint(self, wanted: Constraint | None) -> Constraint | None:
        """Return what binds the output: to calls that must come, or to what the request wants.

        Where an answer in JSON is wanted and a call may come instead, it is to one of both. Beside
        a call that must come, a `response_format` has no text to bind. Raises InvalidRequestError
        for another wish beside it, and for schemas that are too long or too deep.
        """
        if self.required:
            if wanted is not None and wanted.param != "response_format":
                raise InvalidRequestError(
                    "tool_choice asks for a call, which binds the output: it cannot be bound to "
                    "anything else, too.",
                    param=wanted.param,
                )
            return json_schema(self._schema(), "tool_choice")
        if not self.functions or not may_be_calls(wanted):
            return wanted
        answer = {"type": "object"} if wanted.kind == "json_object" else _read(wanted)
        return json_schema(self._schema(answer), wanted.param)

    def is_bound(self, wanted: Constraint | None) -> bool:
        """Return whether the output can be nothing but calls, or JSON where calls may come."""
        return self.required or (bool(self.functions) and may_be_calls(wanted))

    def _schema(self, *answers: Any) -> dict[str, Any]:
        definitions: dict[str, Any] = {}
        calls = _one_of([_call_schema(function, definitions) for function in self.functions])
        if self.parallel:
            calls = {"type": "array", "items": calls, "minItems": 1, "maxItems": MAX_BOUND_CALLS}
        schema = _one_of([calls, *(placed(answer, ":answer", definitions) for answer in answers)])
        return {**schema, "$defs": definitions} if definitions else schema


_NO_OFFER = Offer()


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


_PLAIN = Parsing()


def offer_of(request: ChatCompletionRequest, card: ModelCard) -> Offer:
    """Return what a request offers. Raises InvalidRequestError if the model takes no tools."""
    if not (request.tools or request.functions):
        return _NO_OFFER
    mode, names, one = _choice(request)
    if mode == "none":
        return _NO_OFFER
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
    if offer is _NO_OFFER and card.reasoning_parser is None:
        return _PLAIN
    tools = card.tool_parser if offer.functions else None
    reasoning = card.reasoning_parser if card.reasoning_parser in REASONING else None
    if constraint is not None:
        bound = CALLS if offer.required else "json"
        tools, reasoning = (bound if offer.is_bound(constraint) else None), None
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


def may_be_calls(constraint: Constraint | None) -> TypeGuard[Constraint]:
    """Return whether tools may be called under a constraint: it is to JSON."""
    return constraint is not None and constraint.kind in ("json_object", "json_schema")


def _read(constraint: Constraint) -> Any:
    try:
        schema = orjson.loads(constraint.value)
    except orjson.JSONDecodeError as error:
        raise InvalidRequestError(
            f"The schema is not valid JSON: {error}.", param=constraint.param
        ) from error
    if is_deep(schema):
        raise InvalidRequestError(
            f"The schema is nested more than {MAX_DEPTH} levels deep.", param=constraint.param
        )
    return schema


def _one_of(schemas: list[Any]) -> Any:
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def _call_schema(function: Function, definitions: dict[str, Any]) -> dict[str, Any]:
    parameters = closed({"type": "object", **(function.parameters or _NOTHING)})
    parameters = placed(parameters, function.name, definitions)
    return {
        "type": "object",
        "properties": {"name": {"const": function.name}, "arguments": parameters},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }
