"""What is published on one channel, on a connection of its own."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Self

from redis.asyncio import Redis

from queueserve.errors import RedisUnavailableError
from queueserve.queue.connection import ANSWER_TIMEOUT, translated
from queueserve.queue.exchange import pack
from queueserve.queue.wire import Plug, Wire


class Subscription:
    """One channel; what comes from its confirmation on is kept until it is asked for.

    A dead connection shows within two `interval`s, as a ping is sent after one of silence.
    """

    def __init__(self, redis: Redis, channel: str, *, interval: float = 5.0) -> None:
        self._plug = Plug(redis)
        self._channel = channel
        self._interval = interval
        self._wire: Wire | None = None
        self._subscribed = False
        self._gone: Exception | None = None
        self._kept: deque[bytes] = deque()
        self._message: Callable[[bytes], None] = self._keep
        self._news = asyncio.Event()
        self._heard = 0.0  # when anything last came, by the event loop's clock
        self._pinged = False  # since then
        self._listening: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        """Subscribe, and wait for the confirmation. Raises RedisUnavailableError."""
        try:
            with translated():
                async with asyncio.timeout(ANSWER_TIMEOUT):
                    self._wire = await self._plug.wire(self._received, self._lost)
                    self._wire.write(pack(("SUBSCRIBE", self._channel)))
                    await self._until(lambda: self._subscribed)
        except BaseException:
            await self._plug.unplug()
            raise
        self._listen(self._interval)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Give the connection back."""
        assert self._listening  # noqa: S101 - set when it was entered
        self._listening.cancel()
        await self._plug.unplug()

    async def next(self) -> bytes:
        """The next message. Raises RedisUnavailableError when the connection is gone."""
        with translated():
            await self._until(lambda: bool(self._kept))
        return self._kept.popleft()

    async def deliver(self, message: Callable[[bytes], None]) -> None:
        """Call `message`, which must not raise, for every one, as it is read.

        Raises RedisUnavailableError when the connection is gone.
        """
        while self._kept:
            message(self._kept.popleft())
        self._message = message
        with translated():
            await self._until(lambda: False)

    async def _until(self, reached: Callable[[], bool]) -> None:
        """Wait for something. Raises what the connection was lost for."""
        while not reached():
            if self._gone:
                raise self._gone
            self._news.clear()
            await self._news.wait()

    # What the connection says

    def _received(self, answer: Any) -> None:
        self._heard = asyncio.get_running_loop().time()
        self._pinged = False
        if isinstance(answer, Exception):  # the subscription was refused
            self._lost(answer)
        elif answer[0] == b"message":
            self._message(answer[2])
        elif answer[0] == b"subscribe":
            self._subscribed = True
            self._news.set()

    def _keep(self, message: bytes) -> None:
        self._kept.append(message)
        self._news.set()

    def _lost(self, reason: Exception) -> None:
        self._gone = self._gone or reason
        self._news.set()

    def _listen(self, seconds: float) -> None:
        self._listening = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        """Ask for a sign of life after one interval of silence, and give up after two."""
        assert self._wire  # noqa: S101 - it was opened before
        silence = asyncio.get_running_loop().time() - self._heard
        if silence < self._interval:
            self._listen(self._interval - silence)
        elif self._pinged:
            self._wire.close(RedisUnavailableError("Redis does not answer."))
        elif self._wire.open:
            self._pinged = True
            self._wire.write(pack(("PING",)))
            self._listen(self._interval)
