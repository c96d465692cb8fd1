"""POST /v1/rerank and /v1/score: what a request may hold (the rule is in `generation`)."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field, ValidationInfo, field_validator

from queueserve.api.limits import MAX_CHARS, MAX_INPUT_CHARS, MAX_INPUTS, MAX_QUERY_CHARS
from queueserve.api.schemas.data import DataRequest
from queueserve.api.schemas.generation import Schema
from queueserve.api.schemas.values import invalid, together

_TOGETHER = f"At most {MAX_INPUT_CHARS} characters together."

Query: TypeAlias = Annotated[str, Field(max_length=MAX_QUERY_CHARS)]
Queries: TypeAlias = Annotated[
    list[Query],
    Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True),
    together(MAX_INPUT_CHARS, "characters"),
]
Text: TypeAlias = Annotated[str, Field(max_length=MAX_CHARS)]
Texts: TypeAlias = Annotated[
    list[Text],
    Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True),
    together(MAX_INPUT_CHARS, "characters"),
]


class Document(Schema):
    """A document as an object."""

    text: Text

    def __len__(self) -> int:
        """Return how many characters it has."""
        return len(self.text)


class RerankRequest(DataRequest):
    """The body of a request for an order of documents; as Jina and Cohere have it."""

    query: Query
    documents: Annotated[
        list[Text | Document],
        Field(min_length=1, max_length=MAX_INPUTS, description=_TOGETHER),
        together(MAX_INPUT_CHARS, "characters"),
    ]
    top_n: Annotated[int, Field(ge=0)] | None = Field(
        None, description="The best so many; 0 or none: all."
    )
    return_documents: bool | None = Field(None, description="false leaves the texts out.")

    @property
    def texts(self) -> list[str]:
        """The documents' texts."""
        return [one if isinstance(one, str) else one.text for one in self.documents]


class ScoreRequest(DataRequest):
    """The body of a request for scores: one text against all others, or pair by pair."""

    text_1: Query | Queries = Field(description=_TOGETHER)
    text_2: Text | Texts = Field(description=_TOGETHER)

    @property
    def queries(self) -> list[str]:
        """The first texts: one, or as many as there are second ones."""
        return [self.text_1] if isinstance(self.text_1, str) else self.text_1

    @property
    def texts(self) -> list[str]:
        """The second texts."""
        return [self.text_2] if isinstance(self.text_2, str) else self.text_2

    @field_validator("text_2")
    @classmethod
    def _makes_pairs(cls, value: str | list[str], info: ValidationInfo) -> str | list[str]:
        first = info.data.get("text_1", "")
        ones = 1 if isinstance(first, str) else len(first)
        others = 1 if isinstance(value, str) else len(value)
        if ones not in (1, others):
            raise invalid(f"text_1 has {ones} texts and text_2 {others}: it must be 1, or the same")
        return value
