"""POST /v1/messages: what a request may hold (the rule is in `generation`)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, Tag

from queueserve.api.limits import (
    MAX_MESSAGES,
    MAX_PARTS,
    MAX_STOPS,
    MAX_TOKEN_ID,
    MAX_TOKENS,
    MAX_TOOLS,
)
from queueserve.api.schemas.generation import Probability, Schema, Stop
from queueserve.api.schemas.images import Base64, ImageLink, Kind
from queueserve.api.schemas.tools import CalledName, CallId, Name
from queueserve.api.schemas.values import JsonObject, by_type, of_type, only


class TextBlock(Schema):
    """Text."""

    type: Literal["text"]
    text: str


class ThinkingBlock(Schema):
    """What the model wrote for itself before an answer."""

    type: Literal["thinking"]
    thinking: str


class Base64Source(Schema):
    """An image that comes along."""

    type: Literal["base64"]
    media_type: Kind
    data: Base64

    @property
    def link(self) -> str:
        """The image as a data URL."""
        return f"data:{self.media_type};base64,{self.data}"


class LinkSource(Schema):
    """An image that lies elsewhere."""

    type: Literal["url"]
    url: ImageLink

    @property
    def link(self) -> str:
        """Where it lies."""
        return self.url


class ImageBlock(Schema):
    """An image in a user's message."""

    type: Literal["image"]
    source: Annotated[
        Annotated[Base64Source, Tag("base64")] | Annotated[LinkSource, Tag("url")],
        by_type({"base64": "base64", "url": "url"}, "A source"),
    ]


class ToolUseBlock(Schema):
    """A call that the model has made."""

    type: Literal["tool_use"]
    id: CallId
    name: CalledName
    input: JsonObject


Texts: TypeAlias = Annotated[
    list[Annotated[TextBlock, of_type(("text",), "Content")]], Field(max_length=MAX_PARTS)
]


class ToolResultBlock(Schema):
    """What a call gave."""

    type: Literal["tool_result"]
    tool_use_id: CallId
    content: str | Texts | None = None
    is_error: bool | None = None


_BLOCKS = ("text", "image", "thinking", "tool_use", "tool_result")
Block: TypeAlias = Annotated[
    Annotated[TextBlock, Tag("text")]
    | Annotated[ImageBlock, Tag("image")]
    | Annotated[ThinkingBlock, Tag("thinking")]
    | Annotated[ToolUseBlock, Tag("tool_use")]
    | Annotated[ToolResultBlock, Tag("tool_result")],
    by_type({kind: kind for kind in _BLOCKS}, "Content"),
    of_type(_BLOCKS, "Content"),
]


class Turn(Schema):
    """One message of the conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | Annotated[list[Block], Field(max_length=MAX_PARTS)]


class Tool(Schema):
    """A tool that the model may use."""

    type: Literal["custom"] | None = None
    name: Name
    description: str | None = None
    input_schema: JsonObject


class ToolChoice(Schema):
    """Whether tools may, or which one must, be used."""

    type: Literal["auto", "any", "none"]
    disable_parallel_tool_use: bool | None = None


class NamedTool(Schema):
    """The one tool that must be used."""

    type: Literal["tool"]
    name: Name
    disable_parallel_tool_use: bool | None = None


class Thinking(Schema):
    """Whether the model shall think first, if it can."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None


class JsonSchemaFormat(Schema):
    """What a JSON schema describes."""

    type: Literal["json_schema"]
    schema_: Annotated[JsonObject, Field(alias="schema")]


class OutputConfig(Schema):
    """How the answer shall look."""

    format: JsonSchemaFormat | None = None


class Metadata(Schema):
    """Who asks."""

    user_id: Annotated[str, Field(max_length=512)] | None = None


class CountTokensRequest(Schema):
    """What makes a prompt."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    messages: Annotated[list[Turn], Field(min_length=1, max_length=MAX_MESSAGES)]
    system: str | Texts | None = None
    tools: (
        Annotated[
            list[Annotated[Tool, of_type(("custom",), "A tool")]],
            Field(max_length=MAX_TOOLS),
        ]
        | None
    ) = None
    tool_choice: (
        Annotated[
            Annotated[ToolChoice, Tag("choice")] | Annotated[NamedTool, Tag("tool")],
            by_type(
                dict.fromkeys(("auto", "any", "none"), "choice") | {"tool": "tool"}, "A choice"
            ),
        ]
        | None
    ) = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None


class MessagesRequest(CountTokensRequest):
    """The body of a request."""

    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)]
    stream: bool | None = None
    stop_sequences: Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    temperature: Probability | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)] | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None

    # Known, and refused where they would change the answer
    container: Annotated[Any, only()] = None
    mcp_servers: Annotated[Any, only([])] = None
