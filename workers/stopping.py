"""Stop strings: what of a text may go out while it grows, and where it ends."""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter

_matched = attrgetter("matched")


class _Stop:
    """How far one stop string has been matched: Knuth, Morris and Pratt's automaton."""

    __slots__ = ("back", "matched", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.matched = 0  # the longest prefix of the stop string that the text so far ends with
        self.back = [0] * len(text)  # per prefix: its longest proper prefix that is also its suffix
        length = 0
        for at in range(1, len(text)):
            while length and text[at] != text[length]:
                length = self.back[length - 1]
            length += text[at] == text[length]
            self.back[at] = length

    def feed(self, piece: str) -> int:
        """Return where in `piece` the stop string first ends, 0 if it does not.

        Not to be fed again after it has ended.
        """
        text, back, matched = self.text, self.back, self.matched
        start = 0 if matched else piece.find(text[0])
        if start < 0:
            return 0
        for at in range(start, len(piece)):
            while matched and text[matched] != piece[at]:
                matched = back[matched - 1]
            matched += text[matched] == piece[at]
            if matched == len(text):
                return at + 1
        self.matched = matched
        return 0


class StopFilter:
    """Passes one sequence's text on until a stop string appears in it.

    The text ends at the first character that completes a stop string, and is cut before the longest
    one that ends there; so the result does not depend on how the text was split into pieces. Held
    back is only the longest suffix that may still become a stop string. That suffix is a prefix of
    a stop string, so no text is kept, and the time is linear in the text, whatever the stop is.

    Deterministic per piece: what has gone out after the pieces p1 … pk depends on them only, so a
    worker that feeds the same tokens' texts again is in the same state.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self.hit: str | None = None  # the stop string that has ended the text
        self._stops = [_Stop(stop) for stop in dict.fromkeys(stops) if stop]
        self.any = bool(self._stops)  # without any, all text passes
        self._held = ""  # a stop string, of which the first `_length` characters are held back
        self._length = 0

    def feed(self, text: str) -> tuple[str, bool]:
        """Return the text that may go out now, and whether a stop string was hit.

        On a hit it is the text before the stop string; the filter is not to be used after that.
        """
        if not self.any:
            return text, False
        hits = [
            (end, -len(stop.text), stop.text) for stop in self._stops if (end := stop.feed(text))
        ]
        if hits:
            end, minus, self.hit = min(hits)
            return self._release(text, self._length + end + minus), True
        held = max(self._stops, key=_matched)
        out = self._release(text, self._length + len(text) - held.matched)
        self._held, self._length = held.text, held.matched
        return out, False

    def flush(self) -> str:
        """Return what is still held back, when the text ends without a stop string."""
        rest = self._held[: self._length]
        self._length = 0
        return rest

    def _release(self, text: str, count: int) -> str:
        """Return the first `count` characters of what is held back followed by `text`."""
        if count <= self._length:
            return self._held[:count]
        return self._held[: self._length] + text[: count - self._length]
