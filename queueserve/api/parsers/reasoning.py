"""Reasoning: what a model writes between two tags before it answers.

Where a chat template opens the tag in the prompt, the worker puts it in front of the output, so
that it is always there to be seen.
"""

from __future__ import annotations

from dataclasses import dataclass

from queueserve.api.parsers.pieces import Parser, Piece, Reasoning, joined
from queueserve.api.parsers.source import Reading, Source


@dataclass(frozen=True, slots=True)
class Tags:
    """What stands around the reasoning."""

    opening: str
    closing: str


class ReasoningParser:
    """Finds the reasoning at the beginning of an output; `inner` gets what follows it."""

    def __init__(self, tags: Tags, inner: Parser) -> None:
        self.thought: int | None = None
        self._tags = tags
        self._inner = inner
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

    def _advance(self) -> list[Piece]:
        next(self._parsing, None)
        pieces, self._pieces = joined(self._pieces), []
        return pieces

    def _parse(self) -> Reading[None]:
        source = self._source
        source.mark()
        yield from source.space()
        if (yield from source.literal(self._tags.opening)):
            source.forget()
            yield from source.space()
            if (yield from source.until(self._tags.closing, self._reasoning)):
                self.thought = source.position
            source.forget()
            yield from source.space()
        else:
            self._pass_on(source.marked())
        while (yield from source.more()):
            self._pass_on(source.rest())
        self._pieces += self._inner.end()

    def _reasoning(self, text: str) -> None:
        self._pieces.append(Reasoning(text))

    def _pass_on(self, text: str) -> None:
        self._pieces += self._inner.feed(text)
