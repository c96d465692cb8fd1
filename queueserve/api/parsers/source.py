"""Text that is still growing, for parsers written as if it were all there.

A parser is a generator: it pauses (yields) where the text runs out and goes on when there is more.
It decides by characters that are there, never by where a piece happened to end; that is why every
split of a text gives the same result.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from typing import TypeAlias, TypeVar

_T = TypeVar("_T")
Reading: TypeAlias = Generator[None, None, _T]
"""Pauses until there is more text; returns what was read."""

_SPACE = re.compile(r"\s*")
_MARK_IN_JSON = re.compile(r'["{}\[\]]')
_MARK_IN_STRING = re.compile(r'["\\]')
_SCALAR = re.compile(r"[^\s,:{}\[\]\"]*")


class MalformedError(Exception):
    """The text is not what it began to look like."""


class Source:
    """Reads text that comes in pieces. Keeps what was read from `mark` on, to give it back."""

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self._mark: int | None = None
        self._dropped = 0
        self._final = False
        self.cut = False  # a call broke off where the text ended

    def push(self, text: str) -> None:
        """Add what has come."""
        kept = self._at if self._mark is None else self._mark
        self._text = self._text[kept:] + text
        self._at -= kept
        self._dropped += kept
        self._mark = None if self._mark is None else 0

    def finish(self) -> None:
        """Say that nothing follows."""
        self._final = True

    @property
    def ended(self) -> bool:
        """Whether everything was read and nothing follows."""
        return self._final and self._at == len(self._text)

    @property
    def position(self) -> int:
        """Characters read so far."""
        return self._dropped + self._at

    # Giving back

    def mark(self) -> None:
        """Keep what is read from here on."""
        self._mark = self._at

    def forget(self) -> None:
        """Keep it no longer."""
        self._mark = None

    def marked(self) -> str:
        """Return what was read since `mark`, and keep it no longer."""
        text = "" if self._mark is None else self._text[self._mark : self._at]
        self._mark = None
        return text

    # Reading

    def more(self) -> Reading[bool]:
        """Wait for a character to read; return False at the end of the text."""
        while self._at == len(self._text):
            if self._final:
                return False
            yield
        return True

    def peek(self) -> Reading[str]:
        """Return the next character without reading it, "" at the end."""
        return self._text[self._at] if (yield from self.more()) else ""

    def rest(self) -> str:
        """Read all that is there."""
        at, self._at = self._at, len(self._text)
        return self._text[at:]

    def space(self) -> Reading[None]:
        """Read white space, if there is any."""
        while (yield from self.more()):
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                return

    def literal(self, text: str) -> Reading[bool]:
        """Read `text` if it comes next; else read nothing and return False."""
        while not self._text.startswith(text, self._at):
            if self._final or not text.startswith(self._text[self._at : self._at + len(text)]):
                return False
            yield
        self._at += len(text)
        return True

    def expect(self, text: str) -> Reading[None]:
        """Read white space and `text`. Raises MalformedError if something else comes."""
        yield from self.space()
        if not (yield from self.literal(text)):
            raise MalformedError

    def word(self, letters: re.Pattern[str]) -> Reading[str]:
        """Read as many characters as match, one by one, perhaps none."""
        word: list[str] = []
        while (char := (yield from self.peek())) and letters.match(char):
            word.append(char)
            self._at += 1
        return "".join(word)

    def until(self, literal: str, give: Callable[[str], None]) -> Reading[bool]:
        """Read up to and with `literal`, giving out the text before it; False at the end.

        White space before the literal is not given out, and is marked with it.
        """
        while (found := self._text.find(literal, self._at)) < 0:
            safe = self._without_space(len(self._text) - self._begun(literal))
            give(self._text[self._at : safe])
            self._at = safe
            if self._final:
                give(self.rest())
                return False
            yield
        end = self._without_space(found)
        give(self._text[self._at : end])
        self._at = end
        self.mark()
        self._at = found + len(literal)
        return True

    def _without_space(self, end: int) -> int:
        return self._at + len(self._text[self._at : end].rstrip())

    def _begun(self, literal: str) -> int:
        """Return how many characters at the end of the text may be the beginning of `literal`."""
        most = min(len(literal) - 1, len(self._text) - self._at)
        return next((n for n in range(most, 0, -1) if self._text.endswith(literal[:n])), 0)

    # JSON: found by its brackets and quotes; whether it is valid inside is the receiver's business

    def value(self, give: Callable[[str], None]) -> Reading[None]:
        """Read a JSON value, giving out its text as it grows. Raises MalformedError.

        A value that breaks off at the end of the text is malformed, too, once all was given out.
        """
        match (yield from self.peek()):
            case "{" | "[":
                yield from self._nested(give)
            case '"':
                self._give(1, give)
                yield from self._string(give)
            case _:
                yield from self._scalar(give)

    def _give(self, size: int, give: Callable[[str], None]) -> None:
        give(self._text[self._at : self._at + size])
        self._at += size

    def _nested(self, give: Callable[[str], None]) -> Reading[None]:
        depth = 0
        while (yield from self.more()):
            found = _MARK_IN_JSON.search(self._text, self._at)
            self._give((found.end() if found else len(self._text)) - self._at, give)
            match found and found[0]:
                case "{" | "[":
                    depth += 1
                case "}" | "]":
                    depth -= 1
                    if not depth:
                        return
                case '"':
                    yield from self._string(give)
        raise MalformedError

    def _string(self, give: Callable[[str], None]) -> Reading[None]:
        while (yield from self.more()):
            found = _MARK_IN_STRING.search(self._text, self._at)
            self._give((found.end() if found else len(self._text)) - self._at, give)
            if found and found[0] == '"':
                return
            if found and (yield from self.more()):
                self._give(1, give)  # what follows a backslash
        raise MalformedError

    def _scalar(self, give: Callable[[str], None]) -> Reading[None]:
        empty = True
        while (yield from self.more()):
            found = _SCALAR.match(self._text, self._at)
            size = found.end() - self._at if found else 0
            empty = empty and not size
            self._give(size, give)
            if self._at < len(self._text):
                break
        if empty:
            raise MalformedError
