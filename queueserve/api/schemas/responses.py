"""POST /v1/responses: what a request may hold (the rule is in `generation`)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, Field, Tag, TypeAdapter, ValidationInfo, field_validator

from queueserve.api.encrypted_content import unpacked
from queueserve.api.limits import MAX_LOGPROBS, MAX_MESSAGES, MAX_PARTS, MAX_TOKENS, MAX_TOOLS
from queueserve.api.schemas.generation import GenerationRequest, Schema
from queueserve.api.schemas.images import ImageLink
from queueserve.api.schemas.tools import CalledName, CallId, Name
from queueserve.api.schemas.values import (
    JsonObject,
    by_type,
    invalid,
    of_type,
    only,
    unsupported,
)

LOGPROBS = "message.output_text.logprobs"
ENCRYPTED = "reasoning.encrypted_content"
"""What `include` may name."""
_TEXTS = ("input_text", "output_text", "reasoning_text", "summary_text")


class TextPart(Schema):
    """Text in a message, in reasoning, or in what a function gave."""

    type: Literal["input_text", "output_text", "reasoning_text", "summary_text"]
    text: str


class RefusalPart(Schema):
    """What a model said instead of an answer."""

    type: Literal["refusal"]
    refusal: str


class ImagePart(Schema):
    """An image in a user's message."""

    type: Literal["input_image"]
    image_url: ImageLink
    detail: Literal["auto", "low", "high"] | None = "auto"
    file_id: Annotated[Any, only(instead="image_url")] = None


_KINDS = dict.fromkeys(_TEXTS, "text") | {"refusal": "refusal"}
Part: TypeAlias = Annotated[
    Annotated[TextPart, Tag("text")] | Annotated[RefusalPart, Tag("refusal")],
    by_type(_KINDS, "Content"),
    of_type(_KINDS, "Content"),
]
MessagePart: TypeAlias = Annotated[
    Annotated[TextPart, Tag("text")]
    | Annotated[RefusalPart, Tag("refusal")]
    | Annotated[ImagePart, Tag("image")],
    by_type(_KINDS | {"input_image": "image"}, "Content"),
    of_type((*_KINDS, "input_image"), "Content"),
]


class MessageItem(Schema):
    """A message; its type may be left out."""

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Annotated[list[MessagePart], Field(max_length=MAX_PARTS)]


class FunctionCallItem(Schema):
    """A call that the model has made."""

    type: Literal["function_call"]
    call_id: CallId
    name: CalledName
    arguments: str


class FunctionCallOutputItem(Schema):
    """What a call gave."""

    type: Literal["function_call_output"]
    call_id: CallId
    output: str | Annotated[list[Part], Field(max_length=MAX_PARTS)]


def _is_ours(content: str) -> str:
    try:
        unpacked(content)
    except ValueError as error:
        raise invalid("This is no encrypted_content of this server") from error
    return content


class ReasoningItem(Schema):
    """What the model wrote for itself before an answer."""

    type: Literal["reasoning"]
    summary: Annotated[list[Part], Field(max_length=MAX_PARTS)] | None = None
    content: Annotated[list[Part], Field(max_length=MAX_PARTS)] | None = None
    encrypted_content: Annotated[str, AfterValidator(_is_ours)] | None = None


Item: TypeAlias = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionCallOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    by_type(
        {
            None: "message",
            "message": "message",
            "function_call": "function_call",
            "function_call_output": "function_call_output",
            "reasoning": "reasoning",
        },
        "Input",
    ),
]


class FunctionTool(Schema):
    """A function that the model may call."""

    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class NamedTool(Schema):
    """The one function that must be called, or one of those that may be."""

    type: Literal["function"]
    name: Name


class AllowedTools(Schema):
    """The functions that may be called, of those in `tools`."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=MAX_TOOLS)]


class TextFormat(Schema):
    """Text without a form."""

    type: Literal["text"]


class JsonObjectFormat(Schema):
    """Any object of JSON."""

    type: Literal["json_object"]


class JsonSchemaFormat(Schema):
    """What a JSON schema describes."""

    type: Literal["json_schema"]
    name: Annotated[str, Field(min_length=1, max_length=64)]
    schema_: Annotated[JsonObject, Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None


Format: TypeAlias = Annotated[
    Annotated[TextFormat, Tag("text")]
    | Annotated[JsonObjectFormat, Tag("json_object")]
    | Annotated[JsonSchemaFormat, Tag("json_schema")],
    by_type({kind: kind for kind in ("text", "json_object", "json_schema")}, "A format"),
]


class TextConfig(Schema):
    """How the text shall look."""

    format: Format | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(Schema):
    """Hints on reasoning, which no model here can follow."""

    effort: str | None = None
    summary: str | None = None


ITEMS: TypeAdapter[list[Item]] = TypeAdapter(list[Item])


class ResponsesRequest(GenerationRequest):
    """The body of a request."""

    input: str | Annotated[list[Item], Field(min_length=1, max_length=MAX_MESSAGES)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    tools: (
        Annotated[
            list[Annotated[FunctionTool, of_type(("function",), "A tool")]],
            Field(max_length=MAX_TOOLS),
        ]
        | None
    ) = None
    tool_choice: (
        Literal["none", "auto", "required"]
        | Annotated[
            Annotated[NamedTool, Tag("one")] | Annotated[AllowedTools, Tag("some")],
            by_type({"function": "one", "allowed_tools": "some"}, "A choice"),
        ]
        | None
    ) = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    chat_template_kwargs: JsonObject | None = None
    include: Annotated[list[str], Field(max_length=MAX_PARTS)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    previous_response_id: Annotated[str, Field(max_length=128)] | None = None
    store: bool | None = None
    background: bool | None = None

    # Known, and refused where they would change the answer
    n: Annotated[Any, only(1)] = None
    max_tokens: Annotated[Any, only()] = None
    return_token_ids: Annotated[Any, only(False)] = None
    response_format: Annotated[Any, only(instead="text.format")] = None
    conversation: Annotated[Any, only()] = None
    prompt: Annotated[Any, only()] = None
    max_tool_calls: Annotated[Any, only()] = None

    def includes(self, what: str) -> bool:
        """Return whether the answer shall hold this, too."""
        return what in (self.include or ())

    @field_validator("include")
    @classmethod
    def _includes_nothing_more(cls, value: list[str] | None) -> list[str] | None:
        for wanted in value or ():
            if wanted not in (LOGPROBS, ENCRYPTED):
                raise unsupported(f"To include {wanted[:100]!r}")
        return value

    @field_validator("top_logprobs")
    @classmethod
    def _goes_with_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value and LOGPROBS not in (info.data.get("include") or ()):
            raise invalid(f"This is only for requests that include {LOGPROBS}")
        return value

    @field_validator("background")
    @classmethod
    def _is_stored(cls, value: bool | None, info: ValidationInfo) -> bool | None:  # noqa: FBT001 - pydantic's order
        if value and info.data.get("store") is False:
            raise invalid("What runs in the background must be stored")
        return value
