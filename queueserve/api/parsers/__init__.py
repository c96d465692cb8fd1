"""Parsers of what models write: which there are, and the one for a request."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from queueserve.api.parsers.dialects import Calls, Hermes, Json, Llama3, Mistral, ToolParser
from queueserve.api.parsers.pieces import Arguments, Call, Content, Parser, Piece, Reasoning, joined
from queueserve.api.parsers.reasoning import ReasoningParser, Tags

__all__ = [
    "CALLS",
    "REASONING",
    "TOOLS",
    "Arguments",
    "Call",
    "Content",
    "Parser",
    "Piece",
    "Plain",
    "Reasoning",
    "joined",
    "make_parser",
]

TOOLS: Mapping[str, type[ToolParser]] = {
    "hermes": Hermes,
    "json": Json,
    "llama3": Llama3,
    "mistral": Mistral,
}
"""By the `tool_parser` of a model card."""

CALLS = "calls"
"""The parser of output that is bound to be calls, whatever dialect the model speaks."""

REASONING: Mapping[str, Tags] = {
    "think": Tags("<think>", "</think>"),
    "mistral": Tags("[THINK]", "[/THINK]"),
}
"""By the `reasoning_parser` of a model card."""


class Plain:
    """Content is all there is."""

    thought: int | None = None
    cut = False

    def feed(self, text: str) -> list[Piece]:
        """Return the text."""
        return [Content(text)] if text else []

    def end(self) -> list[Piece]:
        """Return nothing."""
        return []


class OneCall:
    """Leaves out all calls but the first of what `parser` finds."""

    def __init__(self, parser: Parser) -> None:
        self._parser = parser
        self._calls = 0

    def feed(self, text: str) -> list[Piece]:
        """Take more text in; return what has become clear."""
        return list(filter(self._counts, self._parser.feed(text)))

    def end(self) -> list[Piece]:
        """Return what was held back."""
        return list(filter(self._counts, self._parser.end()))

    @property
    def thought(self) -> int | None:
        """As the parser has it."""
        return self._parser.thought

    @property
    def cut(self) -> bool:
        """Whether the call that counts broke off."""
        return self._calls == 1 and self._parser.cut

    def _counts(self, piece: Piece) -> bool:
        self._calls += isinstance(piece, Call)
        return self._calls < 2 or not isinstance(piece, Call | Arguments)  # noqa: PLR2004


def make_parser(
    *, tools: str | None, names: Collection[str], reasoning: str | None, parallel: bool = True
) -> Parser:
    """Return a new parser, for one output.

    `tools` and `reasoning` are keys of the tables here, None where there is nothing to find, or
    `tools` is CALLS; `names` are the tools that may be called, and without `parallel` only the
    first call counts.
    Raises KeyError for a parser that is not there.
    """
    parser: Parser = Plain()
    if tools is not None:
        parser = (Calls if tools == CALLS else TOOLS[tools])(frozenset(names))
    if tools is not None and not parallel:
        parser = OneCall(parser)
    return parser if reasoning is None else ReasoningParser(REASONING[reasoning], parser)
