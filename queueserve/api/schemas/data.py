"""What requests have in common that generate nothing (the rule is in `generation`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from queueserve.api.limits import MAX_TOKENS
from queueserve.api.schemas.generation import Schema


class ModelRequest(Schema):
    """Which model, and whose request it is."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    user: Annotated[str, Field(max_length=512)] | None = Field(
        None, description="The tenant for fair queueing, where there are no API keys."
    )
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None = Field(
        None, description="The priority class: priority goes before default, flex after it."
    )


class DataRequest(ModelRequest):
    """And what becomes of inputs that are too long."""

    truncate_prompt_tokens: Annotated[int, Field(ge=-1, le=MAX_TOKENS)] | None = Field(
        None,
        description="Inputs are cut to so many tokens; -1: to what the model takes. Without it "
        "an input that is too long is an error, unless the worker has --embed-in-truncate.",
    )
