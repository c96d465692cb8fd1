"""How a field refuses a value that we know and do not support."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Discriminator
from pydantic_core import PydanticCustomError

from queueserve.api.limits import MAX_DEPTH


def unsupported(what: str) -> PydanticCustomError:
    """Return the error for a value that would change the answer in a way that we cannot give."""
    return PydanticCustomError("unsupported_value", "{what} is not supported", {"what": what})


def invalid(why: str) -> PydanticCustomError:
    """Return the error for a value that does not go with the rest of the request."""
    return PydanticCustomError("invalid_value", "{why}", {"why": why})


def only(*neutral: Any, instead: str = "") -> AfterValidator:
    """Accept null and the values that change nothing; refuse all others as unsupported.

    `instead` is the field to use.
    """
    what = f"This (use {instead})" if instead else "This value"

    def check(value: Any) -> Any:
        if value is not None and value not in neutral:
            raise unsupported(what)
        return value

    return AfterValidator(check)


def at_most(members: int) -> BeforeValidator:
    """Refuse an object with more members before any of them is looked at."""

    def check(value: Any) -> Any:
        if isinstance(value, dict) and len(value) > members:
            raise invalid(f"At most {members} members are allowed here")
        return value

    return BeforeValidator(check)


def together(most: int, what: str) -> AfterValidator:
    """Refuse a list whose members are longer than `most` in sum."""

    def check(value: list[Any]) -> list[Any]:
        if sum(map(len, value)) > most:
            raise invalid(f"These have more than {most} {what} together")
        return value

    return AfterValidator(check)


def is_deep(value: Any) -> bool:
    """Return whether a value is nested more deeply than a job can carry, MAX_DEPTH levels."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [part for one in level for part in _parts(one)]
        if not level:
            return False
    return True


def _nested(value: dict[str, Any]) -> dict[str, Any]:
    if is_deep(value):
        raise invalid(f"This is nested more than {MAX_DEPTH} levels deep")
    return value


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


JsonObject: TypeAlias = Annotated[dict[str, Any], AfterValidator(_nested)]
"""Any JSON object that a job can carry."""


def by_type(tags: Mapping[str | None, str], what: str) -> Discriminator:
    """Return what tells the members of a union apart: by `type`, each value with its tag.

    An unknown type is refused as unsupported; None stands for a type that is left out.
    """

    def tag(value: Any) -> str | None:
        kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
        return tags.get(kind) if isinstance(kind, str | None) else None

    return Discriminator(
        tag,
        custom_error_type="unsupported_value",
        custom_error_message=f"{what} of this type is not supported",
    )


def of_type(kinds: Iterable[str | None], what: str) -> BeforeValidator:
    """Refuse an unknown `type` as unsupported; None stands for a type that is left out."""
    known = frozenset(kinds)

    def check(value: Any) -> Any:
        kind = value.get("type") if isinstance(value, dict) else None
        if isinstance(kind, str) and kind not in known:
            raise unsupported(f"{what} of type {kind[:50]!r}")
        return value

    return BeforeValidator(check)
