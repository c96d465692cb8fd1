"""Reasoning: what a model writes between two tags before it answers.

Where a chat template opens the tag in the prompt, the worker puts it in front of the output, so
that it is always there to be seen.
"""

from __future__ import annotations

from dataclasses import dataclass

from queueserve.api.parsers.incremental import IncrementalParser
from queueserve.api.parsers.pieces import Parser, Reasoning
from queueserve.api.parsers.source import Reading


@dataclass(frozen=True, slots=True)
class Tags:
    """What stands around the reasoning."""

    opening: str
    closing: str


class ReasoningParser(IncrementalParser):
    """Finds the reasoning at the beginning of an output; `inner` gets what follows it."""

    def __init__(self, tags: Tags, inner: Parser) -> None:
        super().__init__()
        self._tags = tags
        self._inner = inner

    @property
    def cut(self) -> bool:
        """As what follows the reasoning has it."""
        return self._inner.cut

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
