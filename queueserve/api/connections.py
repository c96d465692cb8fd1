"""Connections that wait for no client for ever: not until it reads, and not for its request.

What goes wrong before there is a request that the application could answer is answered here, in
OpenAI's form like all errors, and the connection is closed.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from queueserve.api.chunked import ChunkingProtocol
from queueserve.api.errors import error_body
from queueserve.api.headers import new_request_id
from queueserve.api.offers import UnmovedProtocol

log = logging.getLogger(__name__)

READ_TIMEOUT = 30.0
"""Seconds in which a request must have come, from its first byte to its last."""
SLOWEST = 16_384
"""Bytes for which a request gets one more second: who sends as fast as this is not too slow.

The largest body, of 16 MiB, has so about 17 minutes.
"""
MAX_HEAD = 65_536
"""Bytes of a request that are no body: its line, headers and trailers, which no one else counts."""
_LINGER = 1.0  # seconds; closed with unread bytes, a connection may take its last answer with it
_FRAMING = 8  # bytes around a chunk of a body: the shortest chunk is one byte

# Linux: how long sent data may stay unacknowledged, or a window closed. It finds a client that
# vanished without a word, and one that leaves the last bytes of an answer unread.
_USER_TIMEOUT: int | None = getattr(socket, "TCP_USER_TIMEOUT", None)


def bounded(write_timeout: float, read_timeout: float = READ_TIMEOUT) -> type[asyncio.Protocol]:
    """Return uvicorn's HTTP protocol with bounds on reads and writes.

    A connection whose buffer (64 KiB) has not emptied within `write_timeout` seconds is reset. For
    what serves it that is a client that has left, so its jobs are cancelled and their slots freed.

    A request that has not come within `read_timeout` seconds, and one more for each SLOWEST bytes
    that have come, is a 408. One with more than MAX_HEAD bytes beside its body is a 431.
    """

    class Bounded(_Reading, _Writing, UnmovedProtocol):
        _read_timeout = read_timeout
        _write_timeout = write_timeout

    return Bounded


class _Writing(ChunkingProtocol):
    _write_timeout: float
    _cut: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if _USER_TIMEOUT is not None:
            connection = transport.get_extra_info("socket")
            milliseconds = max(1, int(self._write_timeout * 1000))
            connection.setsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT, milliseconds)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._cut is None:
            self._cut = self.loop.call_later(self._write_timeout, self._abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._forget()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def _forget(self) -> None:
        if self._cut is not None:
            self._cut.cancel()
            self._cut = None

    def _abort(self) -> None:
        client: Any = self.client
        log.warning("%s has not read for %g s and is cut off", client, self._write_timeout)
        self.transport.abort()


class _Reading(HttpToolsProtocol):
    _read_timeout: float
    _coming = False  # a request is, and is not whole yet
    _late: asyncio.TimerHandle | None = None  # runs then, once that has taken more than one read
    _began = 0.0  # when its first byte came
    _received = 0  # bytes since then
    _of_body = 0  # of these
    _has_head = False
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # Else uvicorn quotes the path for a line that is not written.
        self.access_log &= self.access_logger.isEnabledFor(logging.INFO)
        # Idle like one between two requests, which uvicorn bounds.
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if not self._coming and not self._in_service():
            self._begin()  # also for what begins no request, like an empty line
        self._received += len(data)
        super().data_received(data)
        if not self._coming:
            return
        if self._late is None:
            self._late = self.loop.call_later(self._read_timeout, self._is_late)
        if self._received - self._of_body > MAX_HEAD + _FRAMING * self._of_body:
            self._refuse(431, f"The head is larger than {MAX_HEAD} bytes.", "head_too_large")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._has_head = False
        if not self._coming:
            self._begin()

    def on_headers_complete(self) -> None:
        self._has_head = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._of_body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # uvicorn leaves it where there was an error

    def send_400_response(self, msg: str) -> None:
        if self._answering():
            msg = "What follows the request is none: is its body longer than its Content-Length?"
        self._refuse(400, msg, "invalid_http")

    def _in_service(self) -> bool:
        """Whether the application is at work on a request, whole or not."""
        return self.cycle is not None and not self.cycle.response_complete

    def _answering(self) -> bool:
        """Whether what is written next can only be an answer of the application."""
        return self._in_service() and (self.cycle.response_started or not self.cycle.more_body)

    def _begin(self) -> None:
        self._coming = True
        self._began, self._received, self._of_body = self.loop.time(), 0, 0

    def _end(self) -> None:
        self._coming = False
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _is_late(self) -> None:
        self._late = None
        answered = self._has_head and not self._in_service()  # and we have skipped what came since
        if not answered and (more := self._time_left()) > 0:
            self._late = self.loop.call_later(more, self._is_late)
        elif answered:
            self.transport.close()
        else:
            message = f"The request has not come within {self._read_timeout:g} seconds."
            self._refuse(408, message, "read_timeout")

    def _time_left(self) -> float:
        """Return the seconds that the request still has to come."""
        now = self.loop.time()
        if self._answering() or self.flow.read_paused:  # it is not the client that keeps us waiting
            self._began = now
        return self._began + self._read_timeout + self._received / SLOWEST - now

    def _refuse(self, status: int, message: str, code: str) -> None:
        self._end()
        log.info("%s: %d, %s", self.client, status, message)
        if self._answering() and (self.cycle.response_started or self.pipeline):
            self.transport.close()
            return
        body = error_body(status, message, code=code)
        headers = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            f"x-request-id: {new_request_id()}",
            "connection: close",
        )
        self.transport.write("\r\n".join((*headers, "", "")).encode() + body)
        self._leave()

    def _leave(self) -> None:
        """Close once the client has had the time to read what it was told."""
        self._refused = True
        if self._in_service():
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._late = self.loop.call_later(_LINGER, self.transport.close)
        else:  # TLS
            self.transport.close()
