"""POST /v1/embeddings: what a request may hold (the rule is in `generation`)."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from queueserve.api.limits import MAX_INPUTS
from queueserve.api.schemas.data import DataRequest
from queueserve.api.schemas.generation import TokenId

# One error is enough to know that a branch is not meant; an input may have 100,000 tokens.
Tokens: TypeAlias = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
Texts: TypeAlias = Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
Batch: TypeAlias = Annotated[
    list[Tokens], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)
]


class EmbeddingRequest(DataRequest):
    """The body of a request."""

    input: str | Texts | Tokens | Batch
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
