"""How a field refuses a value that we know and do not support."""

from __future__ import annotations

from typing import Any

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError


def unsupported(what: str) -> PydanticCustomError:
    """Return the error for a value that would change the answer in a way that we cannot give."""
    return PydanticCustomError("unsupported_value", "{what} is not supported", {"what": what})


def invalid(why: str) -> PydanticCustomError:
    """Return the error for a value that does not go with the rest of the request."""
    return PydanticCustomError("invalid_value", "{why}", {"why": why})


def only(*neutral: Any) -> AfterValidator:
    """Accept null and the values that change nothing; refuse all others as unsupported."""

    def check(value: Any) -> Any:
        if value is not None and value not in neutral:
            raise unsupported("This value")
        return value

    return AfterValidator(check)
