"""Redis clients, and the one place where the client library's errors become ours."""

from __future__ import annotations

from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, OutOfMemoryError, RedisError, ResponseError

from queueserve.errors import RedisUnavailableError
from queueserve.queue.address import parse

ANSWER_TIMEOUT = 3.0
"""Seconds in which Redis must answer a command; below the 5 s that clients are promised."""
_CONNECTIONS = 32
_SENTINEL_TIMEOUT = 1.0  # seconds; one that is dead must leave time to ask the next


def open_redis(url: str) -> Redis:
    """A client whose commands are bounded, and sent once: a retried function would run twice.

    Raises RedisConfigurationError for a URL that cannot be understood.
    """
    return _client(url, max_connections=_CONNECTIONS, socket_timeout=ANSWER_TIMEOUT)


def open_blocking_redis(url: str) -> Redis:
    """A client for one blocking command at a time; the caller bounds its waits."""
    return _client(url, max_connections=1, socket_timeout=None)


def _client(url: str, *, max_connections: int, socket_timeout: float | None) -> Redis:
    address = parse(url)
    options = {
        "max_connections": max_connections,
        "timeout": ANSWER_TIMEOUT,
        "socket_timeout": socket_timeout,
        "retry": Retry(NoBackoff(), 0),
        # No CLIENT SETINFO: a file of users that allows it keeps Redis 7.0 from starting.
        "lib_name": None,
        "lib_version": None,
        **address.options,
    }
    if not address.sentinels:
        return Redis.from_pool(_Pool(**options))
    asked = {"socket_timeout": _SENTINEL_TIMEOUT, **(address.sentinel_options or {})}
    manager = Sentinel(address.sentinels, sentinel_kwargs=asked)  # type: ignore[no-untyped-call]
    pool = _SentinelPool(address.master, manager, **options)  # type: ignore[no-untyped-call]
    return Redis.from_pool(pool)


class _Pool(BlockingConnectionPool):
    """Gives a free connection at once, and sees by looking whether it is good.

    redis-py reads from it under a timeout of nought, a cancel for every command: that took more
    time than the rest of a small command, and swallows a cancel of the task that comes meanwhile.
    """

    async def get_connection(self, *_: object, **__: object) -> Any:
        """Give a connection; waits, with a bound, only where none is free or others wait."""
        if self._condition.locked() or self._condition._waiters or not self.can_get_connection():  # noqa: SLF001
            return await super().get_connection()
        connection = self.get_available_connection()  # type: ignore[no-untyped-call]
        try:
            await self.ensure_connection(connection)
        except BaseException:
            await self.release(connection)
            raise
        return connection

    async def ensure_connection(self, connection: AbstractConnection) -> None:
        """Connect what is not connected, has been closed, or has something left to read."""
        stream = connection._reader  # noqa: SLF001 - redis-py has no other way to ask
        clean = stream is not None and stream.exception() is None and not stream.at_eof()
        if not (clean and connection.is_connected and not stream._buffer):  # type: ignore[union-attr] # noqa: SLF001
            await super().ensure_connection(connection)


class _SentinelPool(SentinelConnectionPool, BlockingConnectionPool):
    """Connections to the master that the sentinels name; closes those to the sentinels, too."""

    async def disconnect(self, inuse_connections: bool = True) -> None:  # noqa: FBT001, FBT002 - redis-py's
        await super().disconnect(inuse_connections)
        if inuse_connections:
            for sentinel in self.sentinel_manager.sentinels:
                await sentinel.aclose()


class translated:  # noqa: N801 - it reads as what happens to errors
    """Turns the library's errors into RedisUnavailableError, with the reason.

    Not a generator: it is around every command, and nearly all of them succeed.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        match error:
            case None:
                return
            case OutOfMemoryError():
                reason = "Redis is full and takes no more jobs."
            case BusyLoadingError():
                reason = "Redis is loading its data."
            case ResponseError():
                reason = f"Redis refuses a command: {error}"
            case TimeoutError() | RedisError() | OSError():
                reason = f"Redis does not answer: {error or type(error).__name__}"
            case _:
                return
        raise RedisUnavailableError(reason) from error


def of_another(error: ResponseError) -> bool:
    """Whether a key is not of our type: somebody else has written it."""
    return "WRONGTYPE" in str(error)
