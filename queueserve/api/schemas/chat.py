"""POST /v1/chat/completions: what a request may hold (the rule is in `generation`)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, WrapValidator, field_validator
from pydantic_core.core_schema import ValidatorFunctionWrapHandler

from queueserve.api.limits import MAX_CHARS, MAX_MESSAGES, MAX_TOKENS
from queueserve.api.schemas.generation import GenerationRequest, Schema
from queueserve.api.schemas.values import invalid, only, unsupported


class TextPart(Schema):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


def _text_only(part: Any, validate: ValidatorFunctionWrapHandler) -> TextPart:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind != "text":
        raise unsupported(f"Content of type {kind[:50]!r}")
    checked: TextPart = validate(part)
    return checked


class Message(Schema):
    """One message of the conversation; a chat template decides what of it the model sees."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Annotated[TextPart, WrapValidator(_text_only)]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    @property
    def chars(self) -> int:
        """The length of the text."""
        if isinstance(self.content, str):
            return len(self.content)
        return sum(len(part.text) for part in self.content or ())


class ChatCompletionRequest(GenerationRequest):
    """The body of a request."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None

    # Known, and refused where they would change the answer
    logprobs: Annotated[Any, only(False)] = None
    top_logprobs: Annotated[Any, only(0)] = None
    modalities: Annotated[Any, only(["text"])] = None
    audio: Annotated[Any, only()] = None
    web_search_options: Annotated[Any, only()] = None
    tool_choice: Annotated[Any, only("none", "auto")] = None
    tools: Any = Field(None, description='Only with tool_choice "none", which hides them.')
    function_call: Annotated[Any, only("none", "auto")] = None
    functions: Any = Field(None, description='Only with function_call "none", which hides them.')

    @field_validator("messages")
    @classmethod
    def _says_something(cls, messages: list[Message]) -> list[Message]:
        if sum(message.chars for message in messages) > MAX_CHARS:
            raise invalid(f"The messages have more than {MAX_CHARS} characters")
        for index, message in enumerate(messages):
            if message.content is None and message.role != "assistant":
                raise invalid(f"Message {index}, of role {message.role!r}, needs a content")
        return messages

    @field_validator("add_generation_prompt")
    @classmethod
    def _goes_with_continuing(cls, value: bool | None, info: ValidationInfo) -> bool | None:  # noqa: FBT001 - pydantic's order
        continues = bool(info.data.get("continue_final_message"))
        if value and continues:
            raise invalid("This cannot be true together with continue_final_message")
        if value is False and not continues:
            raise unsupported("false without continue_final_message")
        return value

    @field_validator("tools")
    @classmethod
    def _hidden_tools_only(cls, value: Any, info: ValidationInfo) -> Any:
        if value and info.data.get("tool_choice") != "none":
            raise unsupported('Tool calling, other than tool_choice "none",')
        return value

    @field_validator("functions")
    @classmethod
    def _hidden_functions_only(cls, value: Any, info: ValidationInfo) -> Any:
        if value and info.data.get("function_call") != "none":
            raise unsupported('Function calling, other than function_call "none",')
        return value
