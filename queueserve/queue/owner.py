"""The open requests of one API server process: opened, fanned out to, continued, let go of."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Self

from redis.asyncio import Redis

from queueserve.errors import (
    CancelledJobError,
    IdempotencyConflictError,
    QueueServeError,
    RedisUnavailableError,
    ServerExpiredError,
)
from queueserve.protocol import Continuation, Job, Started
from queueserve.queue.clock import lease_clock
from queueserve.queue.connection import ANSWER_TIMEOUT
from queueserve.queue.directory import Directory
from queueserve.queue.keys import Keys
from queueserve.queue.producer import Holder, Place, Producer, Standing
from queueserve.queue.prover import Prover
from queueserve.queue.recovery import Reaper, jittered
from queueserve.queue.replies import events_of, follow
from queueserve.queue.stream import JobStream, Need
from queueserve.queue.tasks import Tasks
from queueserve.queue.turn import Turn

log = logging.getLogger(__name__)

_WATCH = 1.0  # seconds between looks for silent streams
_SILENT_RUNNING = 3.0  # seconds; a worker says something of each live job every second
_SILENT_QUEUED = 30.0
_RESYNC_EVERY = 0.5  # seconds; one gap must not ask once per event
_CLOSE_WITHIN = 3.0
_RUN_OUT = {"cancelled", "expired"}
_RUNS = 10  # of one Idempotency-Key while Redis remembers them
_TAKEN_OVER = "Another request with this Idempotency-Key took over."


class _Session:
    """One registration of this API server. Once it has expired, its id is never used again."""

    def __init__(self) -> None:
        host = socket.gethostname()
        self.api = f"{host}-{os.getpid()}-{secrets.token_hex(4)}"
        self.subscribed = asyncio.Event()
        self.confirmed: dict[str, float] = {}  # pool → when its last good beat was sent
        self.beating: set[str] = set()  # pools in which it is renewed
        self.tasks = Tasks()


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
        directory: Directory,
        *,
        heartbeat_timeout: float,
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._producer = producer
        self._reaper = reaper
        self._directory = directory
        self._timeout = heartbeat_timeout
        self._open: dict[str, JobStream] = {}
        self._abandoned: dict[
            str, tuple[JobStream, float]
        ] = {}  # a cancel that Redis has not heard
        self._resynced: dict[str, float] = {}
        self._tasks = Tasks()
        self._closing = Tasks()  # cancels, which a shutdown waits for
        self._session = _Session()
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
        await self._closing.settle(_CLOSE_WITHIN)
        for tasks in (self._closing, self._tasks, self._session.tasks):
            await tasks.aclose()

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

    async def _open_once(self, job: Job) -> tuple[JobStream, Standing]:
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await self._session.subscribed.wait()
        except TimeoutError:
            raise RedisUnavailableError("Redis does not answer.") from None
        session = self._session  # it may be another one by now
        stream = JobStream(job, self._close)
        if older := self._open.get(job.id):
            if older.job != job:  # Redis would say so, too, but the older one must not suffer
                raise IdempotencyConflictError(
                    "This Idempotency-Key was used with another request body."
                )
            older.fail(CancelledJobError(_TAKEN_OVER))
        self._open[job.id] = stream
        self._abandoned.pop(job.id, None)  # a cancel from before would let go of this reader
        try:
            standing = await self._submit(session, stream)
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

    async def _submit(
        self,
        session: _Session,
        stream: JobStream,
        resume: Continuation | None = None,
        *,
        known: bool = False,
    ) -> Standing:
        sent, job = lease_clock(), stream.job
        submit = partial(
            self._producer.submit,
            job,
            session.api,
            reader=stream.reader,
            resume=resume,
            known=known,
        )
        try:
            standing = await submit(new_api=job.pool not in session.confirmed)
        except ServerExpiredError:
            self._lost_registration(session, job.pool, sent)
            if session is not self._session:
                raise
            sent = lease_clock()
            standing = await submit(new_api=True)
        if session is self._session:  # else it has expired meanwhile, and must stay so
            session.confirmed.setdefault(job.pool, sent)
            if job.pool not in session.beating:
                session.beating.add(job.pool)
                session.tasks.start(self._beat(session, job.pool), f"beat {job.pool}")
        return standing

    # What arrives

    def _message(self, message: bytes) -> None:
        if self._expired(self._session):
            self._end_session(self._session)
            return
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
            standing = await self._submit(self._session, stream, stream.continuation, known=True)
        except RedisUnavailableError:
            return
        except QueueServeError as error:
            stream.fail(error)
            return
        if stream.job.id not in self._open:  # its client left while we asked
            self._closing.start(self._cancel(stream), f"cancel {stream.job.id}")
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
            self._closing.start(self._cancel(stream), f"cancel {stream.job.id}")

    def _forget(self, stream: JobStream) -> None:
        if self._open.get(stream.job.id) is stream:
            del self._open[stream.job.id]
            self._resynced.pop(stream.job.id, None)

    async def _cancel(self, stream: JobStream) -> None:
        if stream.job.id in self._open:
            return  # a retry reads it again
        try:
            # What never arrived must not be barred: a retry will bring it.
            if not stream.job.grace or await self._producer.reader(stream.job):
                await self._producer.cancel(stream.job, self.api, stream.reader)
            self._abandoned.pop(stream.job.id, None)
        except RedisUnavailableError:
            until = time.monotonic() + stream.job.timeout
            self._abandoned.setdefault(stream.job.id, (stream, until))

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
            for job, (stream, until) in list(self._abandoned.items()):
                if now > until:
                    self._abandoned.pop(job, None)  # a retry may have been faster
                else:
                    await self._cancel(stream)

    async def _beat(self, session: _Session, pool: str) -> None:
        """Renew the registration in one pool, and reap it, for as long as the session lasts."""
        while True:
            sent = lease_clock()
            wait = self._timeout / 20
            try:
                reaped = await self._reaper.reap(pool, api=session.api)
            except RedisUnavailableError as error:
                log.debug("beat: %s", error.message)
            else:
                if not reaped.expired:
                    session.confirmed[pool] = sent
                    wait = min(reaped.wait, self._timeout / 5)
                else:
                    self._lost_registration(session, pool, sent)
                    if pool not in session.confirmed:
                        break  # the next submit registers, and begins to beat
            if self._expired(session):
                self._end_session(session)
                break
            await asyncio.sleep(jittered(wait))
        session.beating.discard(pool)

    # The session

    def _begin_session(self) -> None:
        session = self._session

        def subscribed() -> None:
            session.subscribed.set()
            session.tasks.start(self._load(), "load functions")
            self._reconcile_all()

        session.tasks.start(
            follow(
                self._redis,
                self._keys.reply(session.api),
                subscribed=subscribed,
                lost=session.subscribed.clear,
                message=self._message,
            ),
            "replies",
        )

    async def _load(self) -> None:
        """A Redis that comes back may be an empty one, and workers need not be allowed to load."""
        try:
            await self._producer.load()
        except RedisUnavailableError as error:
            log.warning("the functions could not be loaded: %s", error.message)

    def _reconcile_all(self) -> None:
        for stream in self._open.values():
            self._tasks.start(self._reconcile(stream), f"reconcile {stream.job.id}")

    def _expired(self, session: _Session) -> bool:
        oldest = min(session.confirmed.values(), default=None)
        return oldest is not None and lease_clock() - oldest > self._timeout

    def _lost_registration(self, session: _Session, pool: str, sent: float) -> None:
        """Redis did not know us at `sent`: our time was up, or it has lost data."""
        if self._expired(session):
            self._end_session(session)
        elif session.confirmed.get(pool, sent) < sent:  # else it has been told meanwhile
            log.warning("Redis has lost the state of %s; submitting what is open again", pool)
            del session.confirmed[pool]
            self._reconcile_all()

    def _end_session(self, session: _Session) -> None:
        """Whatever ran under the old id is being cancelled by others; go on under a new one."""
        if session is not self._session:
            return
        log.warning("the registration of this API server has expired; its open requests end")
        for stream in list(self._open.values()):
            stream.fail(ServerExpiredError("The API server lost its connection to Redis."))
            self._forget(stream)
        self._session = _Session()
        self._tasks.start(session.tasks.aclose(), "end session")
        self._begin_session()


def _after_submit(stream: JobStream, standing: Standing) -> Need:
    if standing.new:  # nothing can have been sent to another reader before
        return stream.placed(standing.state, standing.epoch, standing.worker)
    return stream.stand(standing)
