"""Server-sent events: the framing, and an answer that is a stream of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Self

from starlette.types import Send

from queueserve.api.chunked import ChunkedBody
from queueserve.api.errors import domain_error_body
from queueserve.api.stepping import begin, finish
from queueserve.errors import QueueServeError

log = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would hold the events back
]


def frame(data: bytes) -> bytes:
    """Return the event that carries `data`, a JSON text (so it has no line breaks)."""
    return b"data: " + data + b"\n\n"


def error_frame(error: QueueServeError) -> bytes:
    """Return the event that tells of a failure; the openai client raises APIError on it."""
    return frame(domain_error_body(error))


class EventStream:
    """An answer that has begun: entering sends its head.

    After `interval` seconds without a byte it sends `keep_alive`, which clients ignore and proxies
    take for life. `end` must follow once all else that the request holds has been given back. With
    a `body`, chunks go past ASGI's layers, and the head leaves with the first write.
    """

    def __init__(
        self,
        send: Send,
        *,
        interval: float,
        keep_alive: bytes = KEEP_ALIVE,
        headers: Sequence[tuple[bytes, bytes]] = (),
        body: ChunkedBody | None = None,
    ) -> None:
        self._send = send
        self._body = body
        self._headers = [*_HEADERS, *headers]
        self._interval = interval
        self._comment = keep_alive
        self._loop = asyncio.get_running_loop()
        self._written = self._loop.time()
        self._behind: asyncio.Task[None] | None = None  # a write that waits for the client
        self.busy = False
        """Whether the client is behind: what was pushed last has not been taken."""
        self.caught_up: Callable[[], None] | None = None
        """Called when it is not `busy` any more, were it by a comment that nobody has pushed."""

    async def __aenter__(self) -> Self:
        await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})
        self._beat = self._loop.call_later(self._interval, self._keep_alive)
        return self

    async def __aexit__(self, failed: object, *_: object) -> None:
        self._beat.cancel()
        self.caught_up = None
        if failed and self._behind is not None:  # else what it writes comes before the end
            self._behind.cancel()
            await asyncio.wait((self._behind,))

    async def write(self, frames: bytes) -> None:
        """Send whole frames, in one write. Waits while the client reads too slowly."""
        if self._behind is not None:
            await asyncio.shield(self._behind)
        if self.push(frames) and self._behind is not None:
            await asyncio.shield(self._behind)

    def push(self, frames: bytes) -> bool:
        """Send whole frames in one write, without waiting; must not be `busy`.

        True if the client is behind: then `caught_up` is called once it has taken them.
        """
        self._written = self._loop.time()
        if self._body is not None and self._body.push(frames):
            return False
        sending = self._send({"type": "http.response.body", "body": frames, "more_body": True})
        waiting = begin(sending)
        if waiting is None:
            return False
        self._behind, self.busy = asyncio.create_task(finish(sending, waiting)), True
        self._behind.add_done_callback(self._taken)
        return True

    def _taken(self, task: asyncio.Task[None]) -> None:
        self._behind, self.busy = None, False
        self._written = self._loop.time()
        if not task.cancelled() and (error := task.exception()):
            log.error("a write failed", exc_info=error)
        if self.caught_up is not None and not task.cancelled():
            self.caught_up()

    async def end(self, frames: bytes = b"") -> None:
        """Send the last frames and the end of the answer, after what still waits for the client."""
        if self._behind is not None:
            await self._behind
        await self._send({"type": "http.response.body", "body": frames, "more_body": False})

    def _keep_alive(self) -> None:
        silence = self._loop.time() - self._written
        if silence >= self._interval:
            silence = 0.0
            if not self.busy:
                self.push(self._comment)
        self._beat = self._loop.call_later(self._interval - silence, self._keep_alive)
