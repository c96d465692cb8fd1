"""Tools: what a request may offer, choose and remember of them. Functions are all there is."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from queueserve.api.limits import MAX_TOOLS
from queueserve.api.schemas.generation import Schema
from queueserve.api.schemas.values import JsonObject, of_type

Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.\-]{1,128}$")]
CallId = Annotated[str, Field(min_length=1, max_length=256)]
CalledName = Annotated[str, Field(min_length=1, max_length=128)]
"""A name in the history: whatever a model has called."""

_FUNCTIONS_ONLY = of_type(("function",), "A tool")


class Function(Schema):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: Name
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class Tool(Schema):
    """A function, as `tools` has it."""

    type: Literal["function"]
    function: Function


class FunctionName(Schema):
    """Which function."""

    name: Name


class NamedTool(Schema):
    """The one tool that must be called."""

    type: Literal["function"]
    function: FunctionName


class AllowedNames(Schema):
    """The tools that may be called, or of which one must."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=MAX_TOOLS)]


class AllowedTools(Schema):
    """A choice among some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedNames


class CalledFunction(Schema):
    """A call in the history; `arguments` is JSON text, as the model wrote it."""

    name: str
    arguments: str


class ToolCall(Schema):
    """A call in the history, which a message of role `tool` answers."""

    id: CallId
    type: Literal["function"] = "function"
    function: CalledFunction


Tools: TypeAlias = Annotated[list[Annotated[Tool, _FUNCTIONS_ONLY]], Field(max_length=MAX_TOOLS)]
Functions: TypeAlias = Annotated[list[Function], Field(max_length=MAX_TOOLS)]
ToolCalls: TypeAlias = Annotated[
    list[Annotated[ToolCall, _FUNCTIONS_ONLY]], Field(max_length=MAX_TOOLS)
]
ToolChoice: TypeAlias = Annotated[
    Literal["none", "auto", "required"]
    | Annotated[NamedTool | AllowedTools, Field(discriminator="type")],
    of_type(("function", "allowed_tools"), "A tool_choice"),
]
FunctionChoice: TypeAlias = Literal["none", "auto"] | FunctionName


def chosen_names(choice: str | NamedTool | AllowedTools | FunctionName) -> list[str]:
    """Return the names that a choice names."""
    match choice:
        case FunctionName(name=name) | NamedTool(function=FunctionName(name=name)):
            return [name]
        case AllowedTools(allowed_tools=allowed):
            return [tool.function.name for tool in allowed.tools]
        case _:
            return []
