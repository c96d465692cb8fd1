"""Parsers of what models write: which there are, and the one for a request."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from queueserve.api.parsers.dialects import Hermes, Json, Llama3, Mistral, ToolParser
from queueserve.api.parsers.pieces import Arguments, Call, Content, Parser, Piece, Reasoning, joined
from queueserve.api.parsers.reasoning import ReasoningParser, Tags

__all__ = [
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

REASONING: Mapping[str, Tags] = {
    "think": Tags("<think>", "</think>"),
    "mistral": Tags("[THINK]", "[/THINK]"),
}
"""By the `reasoning_parser` of a model card."""


class Plain:
    """Content is all there is."""

    thought: int | None = None

    def feed(self, text: str) -> list[Piece]:
        """Return the text."""
        return [Content(text)] if text else []

    def end(self) -> list[Piece]:
        """Return nothing."""
        return []


def make_parser(*, tools: str | None, names: Collection[str], reasoning: str | None) -> Parser:
    """Return a new parser, for one output.

    `tools` and `reasoning` are keys of the tables here, None where there is nothing to find;
    `names` are the tools that may be called. Raises KeyError for a name that is not there.
    """
    inner: Parser = Plain() if tools is None else TOOLS[tools](frozenset(names))
    return inner if reasoning is None else ReasoningParser(REASONING[reasoning], inner)
