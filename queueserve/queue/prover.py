"""Who runs a job, when an event claims a newer epoch: Redis is asked, many jobs at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from queueserve.errors import RedisUnavailableError
from queueserve.queue.producer import Holder, Producer
from queueserve.queue.stream import JobStream

log = logging.getLogger(__name__)

_MOST = 256  # jobs in one question


class Prover:
    """Asks for every stream given to `ask`, and tells `told`.

    One question is on its way at a time: under load it covers all that came up since the last one.
    """

    def __init__(
        self, producer: Producer, told: Callable[[JobStream, Holder | None], None]
    ) -> None:
        self._producer = producer
        self._told = told
        self._asked: dict[str, JobStream] = {}
        self._wake = asyncio.Event()

    def ask(self, stream: JobStream) -> None:
        """Ask for this one with the next question."""
        self._asked[stream.job.id] = stream
        self._wake.set()

    async def run(self) -> None:
        """Ask for ever. What fails now is found again by the owner's watch."""
        while True:
            await self._wake.wait()
            streams = list(self._asked.values())[:_MOST]
            for stream in streams:
                del self._asked[stream.job.id]
            if not self._asked:
                self._wake.clear()
            try:
                found = await self._producer.holders([stream.job for stream in streams])
            except RedisUnavailableError as error:
                log.debug("who runs %d jobs: %s", len(streams), error.message)
                continue
            for stream, holder in zip(streams, found, strict=True):
                self._told(stream, holder)
