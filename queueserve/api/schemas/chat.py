"""POST /v1/chat/completions: what a request may hold (the rule is in `generation`)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from queueserve.api.limits import (
    MAX_CHARS,
    MAX_IMAGES,
    MAX_LOGPROBS,
    MAX_MESSAGES,
    MAX_PARTS,
    MAX_TOKENS,
)
from queueserve.api.schemas.generation import GenerationRequest, Schema
from queueserve.api.schemas.images import ImageLink
from queueserve.api.schemas.tools import (
    CalledFunction,
    CallId,
    Function,
    FunctionChoice,
    Functions,
    ToolCalls,
    ToolChoice,
    Tools,
    chosen_names,
)
from queueserve.api.schemas.values import JsonObject, invalid, of_type, only


class TextPart(Schema):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class RefusalPart(Schema):
    """A part of an earlier answer of the assistant that refuses."""

    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        """The refusal."""
        return self.refusal


class ImageUrl(Schema):
    """Where an image is."""

    url: ImageLink
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(Schema):
    """An image in a user's message."""

    type: Literal["image_url"]
    image_url: ImageUrl
    text: ClassVar[str] = ""


Part: TypeAlias = Annotated[
    Annotated[TextPart | RefusalPart | ImagePart, Field(discriminator="type")],
    of_type(("text", "refusal", "image_url"), "Content"),
]


class Message(Schema):
    """One message of the conversation; a chat template decides what of it the model sees."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[Part], Field(max_length=MAX_PARTS)] | None = None
    name: Annotated[str, Field(max_length=256)] | None = None
    tool_calls: ToolCalls | None = None
    tool_call_id: CallId | None = None
    function_call: CalledFunction | None = None
    reasoning_content: str | None = None
    refusal: str | None = None

    @property
    def says_nothing(self) -> bool:
        """Whether it has neither a text of any kind nor calls."""
        silent = self.content is self.refusal is self.reasoning_content is None
        return silent and not (self.tool_calls or self.function_call)

    @property
    def chars(self) -> int:
        """The length of the text."""
        parts = self.content or ()
        chars = len(parts) if isinstance(parts, str) else sum(len(part.text) for part in parts)
        if self.tool_calls:
            chars += sum(len(call.function.arguments) for call in self.tool_calls)
        if self.function_call:
            chars += len(self.function_call.arguments)
        return chars + len(self.reasoning_content or "") + len(self.refusal or "")

    @property
    def images(self) -> list[ImagePart]:
        """The images among the parts."""
        if not isinstance(self.content, list):
            return []
        return [part for part in self.content if isinstance(part, ImagePart)]

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.content is None and self.role != "assistant":
            raise invalid(f"A message of role {self.role!r} needs a content")
        if self.says_nothing:
            raise invalid("A message of role 'assistant' needs a content, or calls")
        if self.role == "tool" and self.tool_call_id is None:
            raise invalid("A message of role 'tool' needs the tool_call_id of the call it answers")
        if self.role == "function" and self.name is None:
            raise invalid("A message of role 'function' needs the name of the function")
        if (self.tool_calls or self.function_call) and self.role != "assistant":
            raise invalid(f"A message of role {self.role!r} cannot call tools")
        if self.role != "user" and self.images:
            raise invalid(f"A message of role {self.role!r} cannot hold images")
        return self


def _short_enough(messages: list[Message]) -> list[Message]:
    if sum(message.chars for message in messages) > MAX_CHARS:
        raise invalid(f"The messages have more than {MAX_CHARS} characters")
    if sum(len(message.images) for message in messages) > MAX_IMAGES:
        raise invalid(f"The messages have more than {MAX_IMAGES} images")
    return messages


Messages: TypeAlias = Annotated[
    list[Message],
    Field(
        min_length=1,
        max_length=MAX_MESSAGES,
        description=f"At most {MAX_CHARS} characters and {MAX_IMAGES} images together.",
    ),
    AfterValidator(_short_enough),
]


class ChatCompletionRequest(GenerationRequest):
    """The body of a request."""

    messages: Messages
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    chat_template_kwargs: JsonObject | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: Functions | None = Field(None, description="The older form of tools.")
    function_call: FunctionChoice | None = Field(
        None, description="The older form of tool_choice, for functions."
    )

    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    # Known, and refused where they would change the answer
    echo: Annotated[Any, only(False)] = None
    modalities: Annotated[Any, only(["text"])] = None
    audio: Annotated[Any, only()] = None
    web_search_options: Annotated[Any, only()] = None

    @field_validator("top_logprobs")
    @classmethod
    def _goes_with_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value and not info.data.get("logprobs"):
            raise invalid("This is only for requests with logprobs: true")
        return value

    @field_validator("add_generation_prompt")
    @classmethod
    def _goes_with_continuing(cls, value: bool | None, info: ValidationInfo) -> bool | None:  # noqa: FBT001 - pydantic's order
        continues = bool(info.data.get("continue_final_message"))
        if value and continues:
            raise invalid("This cannot be true together with continue_final_message")
        return value

    @property
    def images(self) -> list[ImageUrl]:
        """The images of all messages."""
        return [part.image_url for message in self.messages for part in message.images]

    @property
    def offered(self) -> list[Function]:
        """The functions of `tools`, or of the older `functions`."""
        return [tool.function for tool in self.tools or ()] or list(self.functions or ())

    @field_validator("tools", "functions")
    @classmethod
    def _have_names_of_their_own(cls, value: Any, info: ValidationInfo) -> Any:
        if value and info.field_name == "functions" and info.data.get("tools"):
            raise invalid("This cannot be sent together with tools")
        names = [getattr(tool, "function", tool).name for tool in value or ()]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise invalid(f"There are two functions {min(twice)!r}")
        return value

    @field_validator("tool_choice", "function_call")
    @classmethod
    def _chooses_what_is_there(cls, value: Any, info: ValidationInfo) -> Any:
        of = "tools" if info.field_name == "tool_choice" else "functions"
        if value in (None, "none", "auto") or of not in info.data:  # or they are what is wrong
            return value
        there = {getattr(tool, "function", tool).name for tool in info.data[of] or ()}
        if not there:
            raise invalid(f"This needs {of}")
        for name in chosen_names(value):
            if name not in there:
                raise invalid(f"{of} has no function {name!r}")
        return value
