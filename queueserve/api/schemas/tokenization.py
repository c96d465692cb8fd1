"""POST /tokenize, /detokenize and /api/v1/token_check: what a request may hold."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import Field, field_validator, model_validator

from queueserve.api.limits import MAX_CHARS, MAX_INPUTS, MAX_PROMPT_TOKENS, MAX_TOKENS
from queueserve.api.schemas.chat import Messages
from queueserve.api.schemas.data import ModelRequest
from queueserve.api.schemas.generation import Schema, TokenId
from queueserve.api.schemas.tools import Tools
from queueserve.api.schemas.values import JsonObject, invalid, only

Text: TypeAlias = Annotated[str, Field(max_length=MAX_CHARS)]


class TokenizeRequest(ModelRequest):
    """A prompt, or messages that the chat template makes one of."""

    prompt: Text | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = Field(
        None, description="Those around a prompt, true by default; a chat template brings its own."
    )
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    tools: Tools | None = None
    chat_template_kwargs: JsonObject | None = None

    # Known, and refused where they would change the answer
    return_token_strs: Annotated[Any, only(False)] = None

    @model_validator(mode="after")
    def _is_one_of_two(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise invalid("Either prompt or messages must be there")
        if self.add_generation_prompt and self.continue_final_message:
            raise invalid("add_generation_prompt cannot be true with continue_final_message")
        if self.messages is not None and self.add_special_tokens:
            raise invalid("add_special_tokens is for prompts; a chat template brings its own")
        return self


class DetokenizeRequest(ModelRequest):
    """Token ids."""

    tokens: Annotated[list[TokenId], Field(max_length=MAX_PROMPT_TOKENS, fail_fast=True)]


class PromptToCheck(ModelRequest):
    """A prompt and how long its answer may be."""

    prompt: Text
    max_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] = 0


class TokenCheckRequest(Schema):
    """Prompts, as FastChat's clients send them."""

    prompts: Annotated[
        list[PromptToCheck],
        Field(
            min_length=1,
            max_length=MAX_INPUTS,
            description=f"At most {MAX_CHARS} characters together.",
        ),
    ]

    @field_validator("prompts")
    @classmethod
    def _are_short_enough(cls, prompts: list[PromptToCheck]) -> list[PromptToCheck]:
        if sum(len(one.prompt) for one in prompts) > MAX_CHARS:
            raise invalid(f"The prompts have more than {MAX_CHARS} characters together")
        return prompts
