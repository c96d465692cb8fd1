"""An answer's chunks on their way to the connection, past the layers of ASGI.

Every token of a stream is one `send` through all layers around the application, each a coroutine
and a message, for bytes that none of them looks at. Here it is one call. The head of an answer and
its end still go through the layers.
"""

from __future__ import annotations

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
    """uvicorn's HTTP protocol; lets the application write chunks of its answers itself."""

    def on_headers_complete(self) -> None:
        """Offer it to the application, which runs in a later turn of the event loop."""
        super().on_headers_complete()
        self.scope["extensions"] = {_EXTENSION: {"cycle": self.cycle}}
        if self.scope["http_version"] == "1.0":
            self.cycle.send = partial(_send_whole, self.cycle)  # type: ignore[method-assign]


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
