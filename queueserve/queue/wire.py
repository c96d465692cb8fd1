"""A connection that redis-py has opened, and this reads and writes: no layers around a command.

The client library resolves the address, opens, logs in and closes, so TLS, Sentinel and ACLs are
its business as everywhere. In between its coroutines, timeouts and stream buffers take three times
as long as a command itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import hiredis
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection, DefaultParser
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, ReadOnlyError

_INCOMPLETE = object()


class Wire(asyncio.Protocol):
    """Calls `received` with every answer, a ResponseError for a command that was refused.

    `lost` is called once, with the reason, when the connection ends, or has an answer after which
    it is of no use: the server is loading, is full of clients, or is not the master any more.
    Neither may raise.
    """

    def __init__(
        self,
        connection: AbstractConnection,
        received: Callable[[Any], None],
        lost: Callable[[Exception], None],
    ) -> None:
        """Take over a connection that is open and has nothing left to read."""
        self._received = received
        self._lost = lost
        self._fatal: Exception | None = None
        self._reader = hiredis.Reader(
            protocolError=InvalidResponse, replyError=self._refusal, notEnoughData=_INCOMPLETE
        )
        writer = connection._writer  # noqa: SLF001 - redis-py has no other way to it
        assert writer is not None  # noqa: S101 - it is open
        self._transport = cast("asyncio.Transport", writer.transport)
        self._theirs = self._transport.get_protocol()
        self._transport.set_protocol(self)
        self.open = True

    def write(self, data: bytes) -> None:
        """Send packed commands."""
        self._transport.write(data)

    def close(self, reason: Exception) -> None:
        """End the connection at once; what is on its way is lost."""
        self._transport.abort()
        self._end(reason)

    def _refusal(self, text: str) -> Exception:
        error: Exception = DefaultParser.parse_error(text)  # type: ignore[no-untyped-call]
        if isinstance(error, RedisConnectionError | ReadOnlyError):
            self._fatal = error
        return error

    def _end(self, reason: Exception) -> None:
        if self.open:
            self.open = False
            self._lost(reason)

    # What the event loop calls

    def data_received(self, data: bytes) -> None:
        """Hand over the answers that are complete."""
        self._reader.feed(data)
        try:
            while self.open and (answer := self._reader.gets()) is not _INCOMPLETE:
                if self._fatal:
                    self.close(self._fatal)
                else:
                    self._received(answer)
        except InvalidResponse as error:
            self.close(error)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell it here and to redis-py, which waits for it where it closes."""
        self._theirs.connection_lost(exc)
        self._end(RedisConnectionError(f"the connection to Redis was closed: {exc or 'by it'}"))


class Plug:
    """Where a wire is plugged in: one connection of a client, kept, and opened again once lost."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._connection: AbstractConnection | None = None

    async def wire(
        self, received: Callable[[Any], None], lost: Callable[[Exception], None]
    ) -> Wire:
        """Open a new wire; the one before is closed. Raises RedisError, OSError or TimeoutError.

        The client's `aclose` closes it, too.
        """
        if self._connection is None:
            self._connection = await self._redis.connection_pool.get_connection()
        else:
            await self._connection.disconnect(nowait=True)
            await self._connection.connect()  # type: ignore[no-untyped-call]
        return Wire(self._connection, received, lost)

    async def unplug(self) -> None:
        """Give the connection back to the client."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)
            await self._redis.connection_pool.release(connection)
