"""What every parser of a growing output is made of: a source, its reading, what was found."""

from __future__ import annotations

from abc import ABC, abstractmethod

from queueserve.api.parsers.pieces import Piece, joined
from queueserve.api.parsers.source import Reading, Source


class IncrementalParser(ABC):
    """Satisfies `Parser`: a subclass reads `_source` in `_parse`, and appends to `_pieces`."""

    def __init__(self) -> None:
        self.thought: int | None = None
        self._source = Source()
        self._pieces: list[Piece] = []
        self._parsing = self._parse()

    def feed(self, text: str) -> list[Piece]:
        """Take more text in; return what has become clear."""
        self._source.push(text)
        return self._advance()

    def end(self) -> list[Piece]:
        """Return what was held back."""
        self._source.finish()
        return self._advance()

    @property
    def cut(self) -> bool:
        """Whether the last call broke off where the text ended."""
        return self._source.cut

    @abstractmethod
    def _parse(self) -> Reading[None]:
        """Read the whole text."""

    def _advance(self) -> list[Piece]:
        next(self._parsing, None)
        pieces, self._pieces = joined(self._pieces), []
        return pieces
