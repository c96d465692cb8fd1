"""What chat and plain completions have in common: how to sample, and how to answer.

One rule for what a request may hold:

- What we know and support is checked, strictly: a string is no number.
- What we know, do not support, and what would change the answer is refused: 400, `param` set, code
  unsupported_value. The value that changes nothing (null, false, "none" …) is accepted.
- Hints that no model here can follow (reasoning_effort, verbosity, prediction), matters of OpenAI's
  own service (store, prompt_cache_key, safety_identifier) and what we do not know are ignored.

null stands for the default, in every field that has one.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationInfo,
    field_validator,
)
from pydantic_core import CoreSchema

from queueserve.api.limits import (
    MAX_BIASES,
    MAX_CHOICES,
    MAX_METADATA,
    MAX_STOP_CHARS,
    MAX_STOPS,
    MAX_TOKEN_ID,
    MAX_TOKENS,
)
from queueserve.api.schemas.constraints import (
    AnyResponseFormat,
    Choices,
    JsonSchema,
    Pattern,
    StructuredOutputs,
)
from queueserve.api.schemas.values import at_most, invalid, only

_INT64 = 2**63

Probability = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]


def _fail_fast(schema: Any) -> None:
    if isinstance(schema, dict):
        if schema.get("type") == "list":
            schema["fail_fast"] = True
        for part in schema.values():
            _fail_fast(part)
    elif isinstance(schema, list | tuple):
        for part in schema:
            _fail_fast(part)


class Schema(BaseModel):
    """Strict about the fields it has, silent about others."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, frozen=True)

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: type[BaseModel], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Let every list stop at its first wrong element.

        A body has room for millions of them, and an error for each would take all memory, and the
        event loop for a minute.
        """
        schema = handler(source)
        _fail_fast(schema)
        return schema


class StreamOptions(Schema):
    """What a stream also tells."""

    include_usage: bool | None = None
    include_queue_position: bool | None = Field(
        None,
        description="Beyond OpenAI: while the request waits, a comment tells its place in the "
        "queue. The answer begins at once, so later failures are events of the stream.",
    )


class GenerationRequest(Schema):
    """The fields of every request that generates text."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Probability | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    seed: Annotated[int, Field(ge=-_INT64, lt=_INT64)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: (
        Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], at_most(MAX_BIASES)] | None
    ) = None
    user: Annotated[str, Field(max_length=512)] | None = Field(
        None, description="The tenant for fair queueing, where no API keys name it."
    )
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None = Field(
        None, description="The priority class: priority goes before default, flex after it."
    )
    metadata: Annotated[dict[MetadataKey, MetadataValue], at_most(MAX_METADATA)] | None = None

    # Beyond OpenAI, as other servers have them
    top_k: Annotated[int, Field(ge=-1, le=MAX_TOKEN_ID)] | None = None
    min_p: Probability | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_BIASES)] | None = None
    ignore_eos: bool | None = None
    return_token_ids: bool | None = Field(
        None, description="The answer holds prompt_token_ids, and token_ids in each choice."
    )

    # What the output must match: one of these at most (`api.constraints`)
    response_format: AnyResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: JsonSchema | None = None
    guided_regex: Pattern | None = None
    guided_choice: Choices | None = None
    guided_grammar: Pattern | None = Field(None, description="In GBNF, or llguidance's Lark.")

    # Known, and refused where they would change the answer
    use_beam_search: Annotated[Any, only(False)] = None

    @property
    def draws(self) -> int:
        """How many sequences are drawn for each prompt."""
        return self.n or 1

    @field_validator("stream_options")
    @classmethod
    def _needs_a_stream(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and not info.data.get("stream"):
            raise invalid("This is only for requests with stream: true")
        return value

    @field_validator("logit_bias")
    @classmethod
    def _is_by_token(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        if value is None:
            return None
        for key in value:
            if not (key.isascii() and key.isdigit() and int(key) <= MAX_TOKEN_ID):
                raise invalid(f"The keys must be token ids, not {key[:50]!r}")
        return value
