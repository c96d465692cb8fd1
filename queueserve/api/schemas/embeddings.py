"""POST /v1/embeddings: what a request may hold (the rule is in `generation`)."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from queueserve.api.limits import (
    MAX_CHARS,
    MAX_INPUT_CHARS,
    MAX_INPUT_TOKENS,
    MAX_INPUTS,
    MAX_PROMPT_TOKENS,
)
from queueserve.api.schemas.data import DataRequest
from queueserve.api.schemas.generation import TokenId
from queueserve.api.schemas.values import together

# One error is enough to know that a branch is not meant; an input may have 100,000 tokens.
Text: TypeAlias = Annotated[str, Field(max_length=MAX_CHARS)]
Tokens: TypeAlias = Annotated[
    list[TokenId], Field(min_length=1, max_length=MAX_PROMPT_TOKENS, fail_fast=True)
]
Texts: TypeAlias = Annotated[
    list[Text],
    Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True),
    together(MAX_INPUT_CHARS, "characters"),
]
Batch: TypeAlias = Annotated[
    list[Tokens],
    Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True),
    together(MAX_INPUT_TOKENS, "tokens"),
]


class EmbeddingRequest(DataRequest):
    """The body of a request."""

    input: Text | Texts | Tokens | Batch = Field(
        description=f"At most {MAX_INPUT_CHARS} characters or {MAX_INPUT_TOKENS} tokens together."
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Vectors are cut to so many numbers and scaled to length 1."
    )

    @property
    def inputs(self) -> list[str | tuple[int, ...]]:
        """The inputs, each as text or as token ids."""
        if isinstance(self.input, str):
            return [self.input]
        if isinstance(self.input[0], int):
            return [tuple(self.input)]
        return [one if isinstance(one, str) else tuple(one) for one in self.input]
