"""Redis clients, and the one place where the client library's errors become ours."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, OutOfMemoryError, RedisError

from queueserve.errors import RedisUnavailableError

ANSWER_TIMEOUT = 3.0
"""Seconds in which Redis must answer a command; below the 5 s that clients are promised."""
_CONNECTIONS = 32


def open_redis(url: str) -> Redis:
    """A client whose commands are bounded, and sent once: a retried function would run twice."""
    pool: BlockingConnectionPool = BlockingConnectionPool.from_url(
        url,
        max_connections=_CONNECTIONS,
        timeout=ANSWER_TIMEOUT,
        socket_timeout=ANSWER_TIMEOUT,
        socket_connect_timeout=2.0,
        socket_keepalive=True,
        retry=Retry(NoBackoff(), 0),
    )
    return Redis.from_pool(pool)


def open_blocking_redis(url: str) -> Redis:
    """A client for one blocking command at a time; the caller bounds its waits."""
    client: Redis = Redis.from_url(
        url,
        single_connection_client=True,
        socket_timeout=None,
        socket_connect_timeout=2.0,
        socket_keepalive=True,
        retry=Retry(NoBackoff(), 0),
    )
    return client


@contextmanager
def translated() -> Iterator[None]:
    """Turn the library's errors into RedisUnavailableError, with the reason."""
    try:
        yield
    except OutOfMemoryError as error:
        raise RedisUnavailableError("Redis is full and takes no more jobs.") from error
    except BusyLoadingError as error:
        raise RedisUnavailableError("Redis is loading its data.") from error
    except (TimeoutError, RedisError, OSError) as error:
        raise RedisUnavailableError(
            f"Redis does not answer: {error or type(error).__name__}"
        ) from error


class Subscription:
    """One channel on a connection of its own; iterate messages with `next`.

    The first message of a subscription is its confirmation. A dead connection shows within two
    `interval`s, as a ping is sent after one of silence.
    """

    def __init__(self, redis: Redis, channel: str, *, interval: float = 5.0) -> None:
        self._pubsub: PubSub = redis.pubsub()
        self._channel = channel
        self._interval = interval
        self._pinged = False

    async def __aenter__(self) -> Self:
        """Subscribe, and wait for the confirmation. Raises RedisUnavailableError."""
        try:
            with translated():
                async with asyncio.timeout(ANSWER_TIMEOUT):
                    await self._pubsub.subscribe(self._channel)
                    while (await self._pubsub.parse_response())[0] != b"subscribe":
                        pass
        except BaseException:
            await self._pubsub.aclose()  # type: ignore[no-untyped-call]
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Give the connection back."""
        await self._pubsub.aclose()  # type: ignore[no-untyped-call]

    async def next(self) -> bytes:
        """The next message. Raises RedisUnavailableError when the connection is gone."""
        with translated():
            while True:
                # With a timeout of its own, or the client's socket_timeout would end the silence.
                answer = await self._pubsub.parse_response(block=False, timeout=self._interval)
                if answer is None:
                    if self._pinged:
                        raise RedisUnavailableError("Redis does not answer.")
                    self._pinged = True
                    await self._pubsub.ping()
                    continue
                self._pinged = False
                if answer[0] == b"message":
                    message: bytes = answer[2]
                    return message
