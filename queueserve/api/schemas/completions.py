"""POST /v1/completions: what a request may hold (the rule is in `generation`)."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field, ValidationInfo, field_validator

from queueserve.api.limits import (
    MAX_CHARS,
    MAX_CHOICES,
    MAX_LOGPROBS,
    MAX_PROMPT_TOKENS,
    MAX_PROMPTS,
    MAX_TOKENS,
)
from queueserve.api.schemas.generation import GenerationRequest, TokenId
from queueserve.api.schemas.values import invalid, only, together, unsupported

# One error is enough to know that a branch is not meant; a prompt may have 100,000 tokens.
Text: TypeAlias = Annotated[str, Field(max_length=MAX_CHARS)]
Tokens: TypeAlias = Annotated[
    list[TokenId], Field(min_length=1, max_length=MAX_PROMPT_TOKENS, fail_fast=True)
]
Texts: TypeAlias = Annotated[
    list[Text],
    Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True),
    together(MAX_CHARS, "characters"),
]
Batch: TypeAlias = Annotated[
    list[Tokens],
    Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True),
    together(MAX_PROMPT_TOKENS, "tokens"),
]


class CompletionRequest(GenerationRequest):
    """The body of a request."""

    prompt: Text | Texts | Tokens | Batch = Field(
        description=f"At most {MAX_CHARS} characters or {MAX_PROMPT_TOKENS} tokens together."
    )

    max_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = Field(
        None, description="0 only with echo."
    )
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: bool | None = Field(
        None, description="The text begins with the prompt, and so do logprobs."
    )
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = Field(
        None, description="So many are drawn, and the n of the best mean logprob are the answer."
    )

    # Known, and refused where they would change the answer
    suffix: Annotated[str, only("")] | None = Field(
        None, description="No model here fills text in before a given end."
    )

    @property
    def draws(self) -> int:
        """How many sequences are drawn for each prompt."""
        return self.best_of or super().draws

    @property
    def prompts(self) -> list[str | tuple[int, ...]]:
        """The prompts, each as text or as token ids."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        if isinstance(prompt[0], int):
            return [tuple(prompt)]
        return [one if isinstance(one, str) else tuple(one) for one in prompt]

    @field_validator("best_of")
    @classmethod
    def _has_enough(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is None:
            return None
        if value < (info.data.get("n") or 1):
            raise invalid("This must be at least n")
        if value > 1 and info.data.get("stream"):
            raise unsupported("A stream of the best of several")
        return value
