"""Jobs that nobody reads any more are cancelled, however long Redis does not hear it."""

from __future__ import annotations

import time
from collections.abc import Callable

from queueserve.errors import RedisUnavailableError
from queueserve.queue.producer import Producer
from queueserve.queue.stream import JobStream
from queueserve.queue.tasks import Tasks

_CLOSE_WITHIN = 3.0  # seconds in which a shutdown waits for them


class Cancels:
    """The cancels of one API server. `api` is its id now, `is_read` whether a job has a reader."""

    def __init__(
        self, producer: Producer, *, api: Callable[[], str], is_read: Callable[[str], bool]
    ) -> None:
        self._producer = producer
        self._api = api
        self._is_read = is_read
        self._unheard: dict[str, tuple[JobStream, float]] = {}  # job → until when to repeat it
        self._tasks = Tasks()

    def start(self, stream: JobStream) -> None:
        """Cancel the job of a stream that was closed."""
        self._tasks.start(self._cancel(stream), f"cancel {stream.job.id}")

    def forget(self, job: str) -> None:
        """Somebody reads it again: a cancel from before would let go of this reader."""
        self._unheard.pop(job, None)

    async def repeat(self) -> None:
        """Say again what Redis has not heard."""
        now = time.monotonic()
        for job, (stream, until) in list(self._unheard.items()):
            if now > until:
                self._unheard.pop(job, None)  # a retry may have been faster
            else:
                await self._cancel(stream)

    async def aclose(self) -> None:
        """Wait a little for those that are on their way."""
        await self._tasks.settle(_CLOSE_WITHIN)
        await self._tasks.aclose()

    async def _cancel(self, stream: JobStream) -> None:
        job = stream.job
        if self._is_read(job.id):
            return  # a retry reads it again
        try:
            # What never arrived must not be barred: a retry will bring it.
            if not job.grace or await self._producer.reader(job):
                await self._producer.cancel(job, self._api(), stream.reader)
            self._unheard.pop(job.id, None)
        except RedisUnavailableError:
            self._unheard.setdefault(job.id, (stream, time.monotonic() + job.timeout))
