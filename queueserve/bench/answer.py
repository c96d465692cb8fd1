"""What a client sees of one answer, and when. Cheap for each token: events are counted, not parsed.

Parsed are only the events until the first text, and the last few: they tell which of the counted
ones carried no text, how many tokens the server says there were, and whether it failed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import orjson

_DONE = b"[DONE]"
_LAST = 4  # pieces that are kept for the end: the last text, finish_reason, usage, [DONE]
_OK = 200


def _has_text(event: dict[str, Any]) -> bool:
    for choice in event.get("choices") or ():
        delta = choice.get("delta") or choice.get("message") or choice
        if delta.get("content") or delta.get("reasoning_content") or delta.get("text"):
            return True
    return False


def _events(frames: bytes) -> Iterator[dict[str, Any]]:
    """The events of whole frames; an empty one for what is no object, as for [DONE]."""
    for line in frames.split(b"\n"):
        if line.startswith(b"data:"):
            text = line[5:].strip()
            event = None if text == _DONE else orjson.loads(text)
            yield event if isinstance(event, dict) else {}


class Answer:
    """One answer as it arrives. Times are seconds of the caller's clock.

    `chunks` counts the events with text, `gaps` has the times between the reads that brought any;
    what came together with another one is counted in `together`.
    """

    __slots__ = (
        *("_last", "_rest", "began", "chunks", "ended", "error", "first", "gaps", "latest"),
        *("status", "together", "tokens", "writes"),
    )

    def __init__(self, began: float) -> None:
        self.began = began
        self.first: float | None = None  # when the first text came
        self.latest = began
        self.ended: float | None = None
        self.status = 0
        self.error = ""
        self.chunks = 0
        self.writes = 0  # HTTP chunks: what the server wrote at once
        self.together = 0
        self.tokens: int | None = None  # as the server counts them
        self.gaps: list[float] = []
        self._rest = b""
        self._last: deque[bytes] = deque(maxlen=_LAST)

    def body(self, data: bytes, at: float) -> None:
        """Take a part of a stream's body in."""
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
        if self._rest or not data.endswith(b"\n\n"):
            data = self._rest + data
            whole = data.rfind(b"\n\n") + 2 if b"\n\n" in data else 0
            data, self._rest = data[:whole], data[whole:]
        if self.first is None:
            data = self._beginning(data, at)
        elif data:
            self.gaps.append(at - self.latest)
            self.latest = at
        if events := data.count(b"\n\ndata:") + data.startswith(b"data:"):
            self._last.append(data)
            self.chunks += events
            self.together += events - 1

    def _beginning(self, data: bytes, at: float) -> bytes:
        """Return the frames from the first text on."""
        frames = data.split(b"\n\n")
        for number, frame in enumerate(frames):
            for event in _events(frame):
                self._note(event)
                if _has_text(event):
                    self.first = self.latest = at
                    return b"\n\n".join(frames[number:])
        return b""

    def whole(self, body: bytes, at: float) -> None:
        """Take the body of an answer in one piece, or of an error."""
        try:
            answer = orjson.loads(body)
        except ValueError:
            answer = None
        if isinstance(answer, dict):
            self._note(answer)
            if _has_text(answer):
                self.first = self.latest = at

    def end(self, at: float) -> None:
        """The answer is complete."""
        self.ended = at
        for event in _events(b"".join(self._last)):
            self._note(event)
            if not _has_text(event):
                self.chunks -= 1
                self.together = max(0, self.together - 1)
        self._last.clear()
        if not self.error and self.status != _OK:
            self.error = f"HTTP status {self.status}"
        elif not self.error and self.first is None:
            self.error = "no text came"

    def _note(self, event: dict[str, Any]) -> None:
        if usage := event.get("usage"):
            self.tokens = usage.get("completion_tokens")
        if error := event.get("error"):
            self.error = str(error.get("message", error) if isinstance(error, dict) else error)
