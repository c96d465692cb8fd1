"""An answer as a row of blocks: reasoning, text, tool calls. Pure.

What the dialects with blocks (/v1/responses, /v1/messages) share: a block is open while it grows,
and what belongs to another one closes it. Each dialect words these steps in its own way.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from queueserve.api.parsers import Arguments, Call, Content, Parser, Piece, Reasoning

Kind: TypeAlias = Literal["reasoning", "text", "call"]


@dataclass(slots=True, eq=False)
class Block:
    """One block; its text is, in a call, the arguments as JSON text."""

    index: int
    kind: Kind
    name: str = ""  # of the function called
    pieces: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)  # of a text's tokens, if asked for

    @property
    def text(self) -> str:
        """What the block holds so far."""
        return "".join(self.pieces)


@dataclass(frozen=True, slots=True)
class Opened:
    """A block begins; it is empty."""

    block: Block


@dataclass(frozen=True, slots=True)
class Grown:
    """A block has got more: `text`, never empty."""

    block: Block
    text: str


@dataclass(frozen=True, slots=True)
class Closed:
    """A block has all that it will hold."""

    block: Block


Step: TypeAlias = Opened | Grown | Closed


class Blocks:
    """The blocks of one output, as its parser finds them; at most one is open, the last."""

    def __init__(self, parser: Parser) -> None:
        self.all: list[Block] = []
        self._parser = parser
        self._open: Block | None = None
        self._space = ""  # held back: white space alone is no text, unless more text follows

    def feed(self, text: str) -> list[Step]:
        """Take more of the output in."""
        return self._take(self._parser.feed(text))

    def end(self) -> list[Step]:
        """Take the end in: what is open is closed, and an answer has at least one block."""
        steps = self._take(self._parser.end())
        if not self.all:
            space = self._space
            steps.append(Opened(self._begin("text")))
            steps += self._grow("text", space)
        return [*steps, *self._close()]

    @property
    def cut(self) -> bool:
        """Whether the last block is a call that broke off."""
        return self._parser.cut

    @property
    def open(self) -> Kind | None:
        """The kind of the block that what came last belongs to; None before the first one."""
        return None if self._open is None else self._open.kind

    def _take(self, pieces: Iterable[Piece]) -> list[Step]:
        steps: list[Step] = []
        for piece in pieces:
            match piece:
                case Content(text):
                    steps += self._text(text)
                case Reasoning(text):
                    steps += self._grow("reasoning", text)
                case Call(name):
                    steps += self._close()
                    steps.append(Opened(self._begin("call", name)))
                case Arguments(text):
                    steps += self._grow("call", text)
        return steps

    def _text(self, text: str) -> list[Step]:
        if self._open is None or self._open.kind != "text":
            self._space += text
            if self._space.isspace():
                return []
            text, self._space = self._space, ""
        return self._grow("text", text)

    def _grow(self, kind: Kind, text: str) -> list[Step]:
        if not text:
            return []
        steps: list[Step] = []
        block = self._open
        if block is None or block.kind != kind:
            steps += self._close()
            block = self._begin(kind)
            steps.append(Opened(block))
        block.pieces.append(text)
        return [*steps, Grown(block, text)]

    def _begin(self, kind: Kind, name: str = "") -> Block:
        block = Block(len(self.all), kind, name)
        self.all.append(block)
        self._open = block
        self._space = ""
        return block

    def _close(self) -> list[Step]:
        block, self._open = self._open, None
        return [] if block is None else [Closed(block)]
