"""POST /tokenize, /detokenize and /api/v1/token_check: what a request may hold."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from queueserve.api.limits import MAX_INPUTS, MAX_MESSAGES, MAX_TOKENS
from queueserve.api.schemas.chat import Message
from queueserve.api.schemas.data import ModelRequest
from queueserve.api.schemas.generation import Schema, TokenId
from queueserve.api.schemas.tools import Tools
from queueserve.api.schemas.values import JsonObject, invalid, only


class TokenizeRequest(ModelRequest):
    """A prompt, or messages that the chat template makes one of."""

    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
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

    tokens: Annotated[list[TokenId], Field(fail_fast=True)]


class PromptToCheck(ModelRequest):
    """A prompt and how long its answer may be."""

    prompt: str
    max_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] = 0


class TokenCheckRequest(Schema):
    """Prompts, as FastChat's clients send them."""

    prompts: Annotated[list[PromptToCheck], Field(min_length=1, max_length=MAX_INPUTS)]
