"""How a request constrains its output: OpenAI's response_format, and what other servers have."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from queueserve.api.limits import MAX_CHOICE_TEXTS, MAX_CONSTRAINT_CHARS
from queueserve.api.schemas.values import JsonObject, invalid, of_type

Pattern: TypeAlias = Annotated[str, Field(min_length=1, max_length=MAX_CONSTRAINT_CHARS)]
Choices: TypeAlias = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=MAX_CONSTRAINT_CHARS)]],
    Field(min_length=1, max_length=MAX_CHOICE_TEXTS),
]
JsonSchema: TypeAlias = JsonObject | Pattern
"""A schema, or its JSON text."""


class _Schema(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, frozen=True)


class NamedSchema(_Schema):
    """What response_format says of a schema; it is always kept to, strict or not."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    schema_: JsonObject = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(_Schema):
    """OpenAI's response_format."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> ResponseFormat:
        if self.type == "json_schema" and self.json_schema is None:
            raise invalid("A response_format of type 'json_schema' needs a json_schema")
        return self


AnyResponseFormat: TypeAlias = Annotated[
    ResponseFormat, of_type(["text", "json_object", "json_schema"], "A response_format")
]


class StructuredOutputs(_Schema):
    """vLLM's structured_outputs: exactly one of its members."""

    json_: JsonSchema | None = Field(None, alias="json")
    regex: Pattern | None = None
    choice: Choices | None = None
    grammar: Pattern | None = None
    json_object: bool | None = None

    @model_validator(mode="after")
    def _is_one(self) -> StructuredOutputs:
        given = (self.json_, self.regex, self.choice, self.grammar, self.json_object or None)
        if sum(one is not None for one in given) != 1:
            raise invalid("Exactly one of json, regex, choice, grammar and json_object must be set")
        return self
