"""What a model's output turns out to be: pieces of content, of reasoning, of tool calls."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeAlias


@dataclass(frozen=True, slots=True)
class Text:
    """Text of one kind; pieces of it can be joined."""

    text: str


class Content(Text):
    """Text for the user."""

    __slots__ = ()


class Reasoning(Text):
    """Text that the model wrote for itself."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call begins; `Arguments` that follow are its own, until the next `Call`."""

    name: str


class Arguments(Text):
    """More of the last call's arguments: JSON text, as the model wrote it."""

    __slots__ = ()


Piece: TypeAlias = Content | Reasoning | Call | Arguments


class Parser(Protocol):
    """Finds the pieces of one output as it grows.

    Pure: what has been given out after some text depends on that text only, not on how it was cut,
    so the joined pieces are the same for every split. A call that is malformed before its arguments
    have begun is content; one that breaks off later has the arguments that were there. All text is
    given out, but for marks and the white space around them.
    """

    def feed(self, text: str) -> list[Piece]:
        """Take more text in; return what has become clear."""

    def end(self) -> list[Piece]:
        """Return what was held back; nothing may be fed afterwards."""

    @property
    def thought(self) -> int | None:
        """Characters at whose end the reasoning was over; None while it goes on or never began."""

    @property
    def cut(self) -> bool:
        """Whether the arguments of the last call broke off at the end of the text."""


def joined(pieces: Iterable[Piece]) -> list[Piece]:
    """Return the pieces with neighbours of one kind made one, and without empty ones."""
    out: list[Piece] = []
    for piece in pieces:
        if isinstance(piece, Text):
            last = out[-1] if out else None
            if not piece.text:
                continue
            if isinstance(last, Text) and type(last) is type(piece):
                out[-1] = type(piece)(last.text + piece.text)
                continue
        out.append(piece)
    return out
