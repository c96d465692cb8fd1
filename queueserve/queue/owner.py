"""The open requests of one API server process: opened, fanned out to, continued, let go of."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Self

from msgspec.structs import replace
from redis.asyncio import Redis

from queueserve.errors import (
    CancelledJobError,
    IdempotencyConflictError,
    QueueServeError,
    RedisUnavailableError,
    ServerExpiredError,
)
from queueserve.protocol import Job, Started
from queueserve.queue.cancels import Cancels
from queueserve.queue.connection import ANSWER_TIMEOUT
from queueserve.queue.keys import Keys
from queueserve.queue.producer import Holder, Place, Producer, Standing
from queueserve.queue.prover import Prover
from queueserve.queue.recovery import Reaper
from queueserve.queue.replies import events_of
from queueserve.queue.session import Session
from queueserve.queue.stream import JobStream, Need
from queueserve.queue.tasks import Tasks
from queueserve.queue.turn import Turn

log = logging.getLogger(__name__)

_WATCH = 1.0  # seconds between looks for silent streams
_SILENT_RUNNING = 3.0  # seconds; a worker says something of each live job every second
_SILENT_QUEUED = 30.0
_RESYNC_EVERY = 0.5  # seconds; one gap must not ask once per event
_RUN_OUT = {"cancelled", "expired"}
_RUNS = 10  # of one Idempotency-Key while Redis remembers them
_TAKEN_OVER = "Another request with this Idempotency-Key took over."


class Owner:
    """Owns every job that a client of this process waits for.

    A job is registered here before it is submitted, so no event can arrive too early. Whatever may
    have been lost (a message, a worker, Redis itself) is healed in one way: ask Redis how the job
    stands.
    """

    def __init__(
        self,
        redis: Redis,
        keys: Keys,
        producer: Producer,
        reaper: Reaper,
        *,
        heartbeat_timeout: float,
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._producer = producer
        self._reaper = reaper
        self._timeout = heartbeat_timeout
        self._open: dict[str, JobStream] = {}
        self._resynced: dict[str, float] = {}
        self._tasks = Tasks()
        self._session = self._new_session()
        self._cancels = Cancels(
            producer, api=lambda: self.api, is_read=lambda job: job in self._open
        )
        self._prover = Prover(producer, self._proven)
        self.turn = Turn()  # of those who read the streams

    async def __aenter__(self) -> Self:
        self._begin_session()
        self._tasks.start(self._watch(), "owner-watch")
        self._tasks.start(self._prover.run(), "owner-proofs")
        return self

    async def __aexit__(self, *_: object) -> None:
        for stream in list(self._open.values()):
            await stream.aclose()
        for owned in (self._cancels, self._tasks, self._session.tasks):
            await owned.aclose()

    @property
    def api(self) -> str:
        """The id under which Redis knows this process now."""
        return self._session.api

    @property
    def ready(self) -> bool:
        """Whether events can arrive."""
        return self._session.subscribed.is_set()

    async def open(self, job: Job) -> JobStream:
        """Submit the job and read it; one that exists is attached to, and replayed from its start.

        A retry is not answered with the end of an earlier run that only time had ended (nobody read
        it, or there was no slot): a job stays ended, so the retry runs as another one.

        Raises QueueFullError, IdempotencyConflictError, RedisUnavailableError, ServerExpiredError.
        """
        stream, standing = await self._open_once(job)
        for run in range(1, _RUNS):
            if standing.new or not job.grace or standing.state not in _RUN_OUT:
                break
            await stream.aclose()
            stream, standing = await self._open_once(replace(job, id=f"{job.id}.{run}"))
        return stream

    async def _subscribed(self) -> None:
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await self._session.subscribed.wait()
        except TimeoutError:
            raise RedisUnavailableError("Redis does not answer.") from None

    async def _open_once(self, job: Job) -> tuple[JobStream, Standing]:
        if not self.ready:
            await self._subscribed()
        session = self._session  # it may be another one by now
        stream = JobStream(job, self._close)
        if older := self._open.get(job.id):
            if older.job != job:  # Redis would say so, too, but the older one must not suffer
                raise IdempotencyConflictError(
                    "This Idempotency-Key was used with another request body."
                )
            older.fail(CancelledJobError(_TAKEN_OVER))
        self._open[job.id] = stream
        self._cancels.forget(job.id)
        try:
            standing = await session.submit(stream)
            stream.position = standing.position
            await self._attend(stream, _after_submit(stream, standing))
        except RedisUnavailableError:
            await stream.aclose()  # it may have been accepted
            raise
        except QueueServeError:
            self._forget(stream)
            raise
        except BaseException:
            await stream.aclose()
            raise
        return stream, standing

    async def place(self, jobs: Sequence[Job]) -> Place | None:
        """Where the first of these jobs, of one pool, waits; None if none does.

        Raises RedisUnavailableError.
        """
        return await self._producer.place(jobs)

    async def stop(self, pool: str, job: str) -> None:
        """Stop a job, whichever API server reads it. Raises RedisUnavailableError."""
        await self._producer.stop(pool, job)

    # What arrives

    def _message(self, message: bytes) -> None:
        self._session.expire()  # what ends with it is not open any more
        for event in events_of(message):
            stream = self._open.get(event.job)
            if stream is None:
                continue  # closed a moment ago
            if type(event) is Started:
                self._resynced.pop(event.job, None)
            need = stream.accept(event)
            if need is Need.PROOF:
                self._prover.ask(stream)
            elif need is not Need.NOTHING:
                self._tasks.start(self._attend(stream, need), f"attend {event.job}")

    async def _attend(self, stream: JobStream, need: Need) -> None:
        """Do what the stream needs. What fails now is found again by the watch."""
        if not self._has_reader(stream):
            return
        try:
            if need is Need.RESUME:
                resumed = await self._producer.resume(
                    stream.job, self.api, stream.parked, stream.continuation
                )
                if not resumed:
                    await self._reconcile(stream)
            elif need is Need.RESYNC:
                await self._resync(stream)
        except RedisUnavailableError as error:
            log.debug("job %s: %s", stream.job.id, error.message)

    async def _resync(self, stream: JobStream) -> None:
        if not stream.worker:
            await self._reconcile(stream)
            return
        now = time.monotonic()
        if now - self._resynced.get(stream.job.id, 0.0) > _RESYNC_EVERY:
            self._resynced[stream.job.id] = now
            await self._producer.resync(stream.job, self.api, stream.worker, len(stream.tokens))

    async def _reconcile(self, stream: JobStream) -> None:
        """Ask Redis how the job stands; a Redis that does not know it gets it again."""
        if not self._has_reader(stream):
            return
        try:
            if stream.job.grace:
                reader = await self._producer.reader(stream.job)
                if reader not in (None, self.api):  # to submit would take it back
                    stream.fail(CancelledJobError(_TAKEN_OVER))
                    return
            standing = await self._session.submit(stream, stream.continuation, known=True)
        except RedisUnavailableError:
            return
        except QueueServeError as error:
            stream.fail(error)
            return
        if stream.job.id not in self._open:  # its client left while we asked
            self._cancels.start(stream)
        else:
            await self._attend(stream, _after_submit(stream, standing))

    def _proven(self, stream: JobStream, holder: Holder | None) -> None:
        if holder is None:
            self._tasks.start(self._reconcile(stream), f"reconcile {stream.job.id}")
            return
        need = stream.placed(holder.state, holder.epoch, holder.worker)
        if need is not Need.NOTHING:
            self._tasks.start(self._attend(stream, need), f"attend {stream.job.id}")

    def _has_reader(self, stream: JobStream) -> bool:
        return not stream.ended and self._open.get(stream.job.id) is stream

    # What leaves

    async def _close(self, stream: JobStream) -> None:
        self._forget(stream)
        if not stream.ended:
            stream.fail(CancelledJobError("The request was cancelled."))
            self._cancels.start(stream)

    def _forget(self, stream: JobStream) -> None:
        if self._open.get(stream.job.id) is stream:
            del self._open[stream.job.id]
            self._resynced.pop(stream.job.id, None)

    # What goes on in the background

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_WATCH)
            now = time.monotonic()
            for stream in list(self._open.values()):
                limit = _SILENT_RUNNING if stream.worker else _SILENT_QUEUED
                if now - stream.heard > limit:
                    stream.heard = now
                    self._tasks.start(self._reconcile(stream), f"reconcile {stream.job.id}")
            await self._cancels.repeat()

    # The session

    def _new_session(self) -> Session:
        return Session(
            self._producer,
            self._reaper,
            heartbeat_timeout=self._timeout,
            lost=self._reconcile_all,
            ended=self._end_session,
            damaged=self._end_pool,
        )

    def _begin_session(self) -> None:
        self._session.listen(
            self._redis, self._keys, subscribed=self._reconcile_all, message=self._message
        )

    def _reconcile_all(self) -> None:
        for stream in self._open.values():
            self._tasks.start(self._reconcile(stream), f"reconcile {stream.job.id}")

    def _end_session(self, session: Session) -> None:
        """Whatever ran under the old id is being cancelled by others; go on under a new one."""
        if session is not self._session:
            return
        log.warning("the registration of this API server has expired; its open requests end")
        self._expire(list(self._open.values()))
        session.over = True
        self._session = self._new_session()
        self._tasks.start(session.tasks.aclose(), "end session")
        self._begin_session()

    def _end_pool(self, pool: str) -> None:
        """What runs in one pool may have been cancelled by others; other pools go on."""
        log.warning("Redis refuses the keys of %s; its open requests end", pool)
        streams = [stream for stream in self._open.values() if stream.job.pool == pool]
        self._expire(streams)
        for stream in streams:
            self._cancels.start(stream)  # the id lives on, so nobody else would end the job

    def _expire(self, streams: list[JobStream]) -> None:
        for stream in streams:
            stream.fail(ServerExpiredError("The API server lost its connection to Redis."))
            self._forget(stream)


def _after_submit(stream: JobStream, standing: Standing) -> Need:
    if standing.new:  # nothing can have been sent to another reader before
        return stream.placed(standing.state, standing.epoch, standing.worker)
    return stream.stand(standing)
