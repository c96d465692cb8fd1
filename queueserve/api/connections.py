"""Connections that do not wait for ever for a client that does not read."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

log = logging.getLogger(__name__)

# Linux: how long sent data may stay unacknowledged, or a window closed. It finds a client that
# vanished without a word, and one that leaves the last bytes of an answer unread.
_USER_TIMEOUT: int | None = getattr(socket, "TCP_USER_TIMEOUT", None)


def bounded(write_timeout: float) -> type[asyncio.Protocol]:
    """Return uvicorn's HTTP protocol with a bound on writes.

    A connection whose buffer (64 KiB) has not emptied within `write_timeout` seconds is reset. For
    what serves it that is a client that has left, so its jobs are cancelled and their slots freed.
    """

    class Bounded(HttpToolsProtocol):
        _cut: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if _USER_TIMEOUT is not None:
                connection = transport.get_extra_info("socket")
                milliseconds = max(1, int(write_timeout * 1000))
                connection.setsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT, milliseconds)

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._cut is None:
                self._cut = self.loop.call_later(write_timeout, self._abort)

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
            log.warning("%s has not read for %g s and is cut off", client, write_timeout)
            self.transport.abort()

    return Bounded
