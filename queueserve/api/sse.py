"""Server-sent events: the framing, and an answer that is a stream of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Self

from starlette.types import Send

from queueserve.api.errors import domain_error_body
from queueserve.errors import QueueServeError

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
    take for life. `end` must follow once all else that the request holds has been given back.
    """

    def __init__(
        self,
        send: Send,
        *,
        interval: float,
        keep_alive: bytes = KEEP_ALIVE,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        self._send = send
        self._headers = [*_HEADERS, *headers]
        self._interval = interval
        self._comment = keep_alive
        self._written = time.monotonic()
        self._writing = False

    async def __aenter__(self) -> Self:
        await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})
        self._beating = asyncio.create_task(self._keep_alive())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._beating.cancel()
        await asyncio.wait((self._beating,))

    async def write(self, frames: bytes) -> None:
        """Send whole frames, in one write. Waits while the client reads too slowly."""
        self._writing = True
        await self._send({"type": "http.response.body", "body": frames, "more_body": True})
        self._writing = False
        self._written = time.monotonic()

    async def end(self) -> None:
        """Send the end of the answer."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _keep_alive(self) -> None:
        while True:
            silence = time.monotonic() - self._written
            if silence < self._interval:
                await asyncio.sleep(self._interval - silence)
                continue
            self._written = time.monotonic()
            if not self._writing:
                await self.write(self._comment)
