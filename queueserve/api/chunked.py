"""What passes between an answer and its connection, past the layers of ASGI.

Every token of a stream is one `send` through all layers around the application, each a coroutine
and a message, for bytes that none of them looks at. Here it is one call. The head of an answer and
its end still go through the layers. And that a client is gone is a call, not a task that waits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from starlette.types import Message, Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

_EXTENSION = "queueserve.chunked"


class ChunkedBody:
    """Writes the chunks of one answer, the first of them together with the answer's head.

    It stands in for the cycle's transport from before the head is sent until the first chunk or the
    end is.
    """

    __slots__ = ("_cycle", "_flow", "_head", "_transport")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._flow = cycle.flow
        self._transport = cycle.transport
        self._head = b""
        cycle.transport = self  # type: ignore[assignment] # as far as a cycle needs one

    def push(self, frames: bytes) -> bool:
        """Write a chunk; False if that must wait, or is not ours to do: then nothing is written."""
        cycle = self._cycle
        if self._flow.write_paused or not cycle.chunked_encoding:
            return False
        if cycle.disconnected:
            return True
        chunk = b"%x\r\n%b\r\n" % (len(frames), frames) if frames else b""
        if self._head:
            self.write(chunk)
        else:
            self._transport.write(chunk)
        return True

    # As the cycle's transport

    def write(self, data: bytes) -> None:
        """Keep what comes first, and write it with what comes next."""
        if not self._head:
            self._head = data
            return
        self._cycle.transport = self._transport
        self._transport.write(self._head + data)
        self._head = b""

    def close(self) -> None:
        """Write what was kept, and close."""
        self._cycle.transport = self._transport
        if self._head:
            self._transport.write(self._head)
        self._transport.close()


class ChunkingProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol; lets the application write chunks of its answers itself.

    And it tells who answers that the client is gone.
    """

    _watched: tuple[RequestResponseCycle, Callable[[], None]] | None = None  # who answers now

    def on_headers_complete(self) -> None:
        """Offer it to the application, which runs in a later turn of the event loop."""
        super().on_headers_complete()
        self.scope["extensions"] = {_EXTENSION: {"cycle": self.cycle, "connection": self}}
        if self.scope["http_version"] == "1.0":
            self.cycle.send = partial(_send_whole, self.cycle)  # type: ignore[method-assign]

    def watch(self, cycle: RequestResponseCycle, gone: Callable[[], None]) -> Callable[[], None]:
        """Call `gone` when the connection is lost; returns what ends the watch."""
        self._watched = cycle, gone
        self.flow.resume_reading()  # the body may have stopped it; who does not read hears nothing
        if self.transport.is_closing():
            self.loop.call_soon(self._tell)
        return self._unwatch

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell it."""
        super().connection_lost(exc)
        self._tell()

    def _tell(self) -> None:
        if self._watched is not None:
            cycle, gone = self._watched
            cycle.disconnected = True  # uvicorn knows that of the last request that has come
            gone()

    def _unwatch(self) -> None:
        self._watched = None


async def _send_whole(cycle: RequestResponseCycle, message: Message) -> None:
    """Send to a client of HTTP/1.0, which knows no chunks: the answer ends with the connection.

    uvicorn would chunk it. It checks a body against its length; here that is what is sent.
    """
    cycle.chunked_encoding = False
    if message["type"] == "http.response.body":
        cycle.expected_content_length = len(message.get("body", b""))
    await RequestResponseCycle.send(cycle, message)  # type: ignore[arg-type]


def chunked_body(scope: Scope) -> ChunkedBody | None:
    """Return the way past the layers, before the answer's head is sent; None if there is none.

    The caller must write something at once after the head.
    """
    offered = scope.get("extensions", {}).get(_EXTENSION)
    return ChunkedBody(offered["cycle"]) if offered else None


def watch(scope: Scope, gone: Callable[[], None]) -> Callable[[], None] | None:
    """Call `gone` when the client of a request, which must have been read, is gone.

    Returns what ends the watch, before the next request begins; None if there is no such way.
    """
    offered = scope.get("extensions", {}).get(_EXTENSION)
    return offered["connection"].watch(offered["cycle"], gone) if offered else None
