"""POST /v1/completions: what a request may hold (the rule is in `generation`)."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import Field, ValidationInfo, field_validator

from queueserve.api.limits import MAX_CHARS, MAX_PROMPTS
from queueserve.api.schemas.generation import GenerationRequest, TokenId
from queueserve.api.schemas.values import invalid, only, unsupported

# One error is enough to know that a branch is not meant; a prompt may have 100,000 tokens.
Tokens: TypeAlias = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
Texts: TypeAlias = Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
Batch: TypeAlias = Annotated[
    list[Tokens], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)
]


class CompletionRequest(GenerationRequest):
    """The body of a request."""

    prompt: str | Texts | Tokens | Batch

    # Known, and refused where they would change the answer
    logprobs: Annotated[Any, only()] = None
    suffix: Annotated[Any, only("")] = None
    best_of: Any = Field(None, description="Only equal to n.")

    @property
    def prompts(self) -> list[str | tuple[int, ...]]:
        """The prompts, each as text or as token ids."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        if isinstance(prompt[0], int):
            return [tuple(prompt)]
        return [one if isinstance(one, str) else tuple(one) for one in prompt]

    @field_validator("prompt")
    @classmethod
    def _is_not_too_long(cls, value: Any) -> Any:
        texts = [value] if isinstance(value, str) else value
        if sum(len(text) for text in texts if isinstance(text, str)) > MAX_CHARS:
            raise invalid(f"The prompts have more than {MAX_CHARS} characters")
        return value

    @field_validator("best_of")
    @classmethod
    def _is_n(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and value != (info.data.get("n") or 1):
            raise unsupported("A best_of other than n")
        return value
