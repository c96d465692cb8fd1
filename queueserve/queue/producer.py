"""The API server's side of the queue: submit, resume and cancel jobs."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from queueserve.encoding import decode_answer, decode_failure, decode_result, encode
from queueserve.errors import (
    IdempotencyConflictError,
    ProtocolError,
    QueueFullError,
    QueueServeError,
    ServerExpiredError,
    from_code,
)
from queueserve.protocol import LIGHT_KINDS, Answer, Continuation, Job, Result
from queueserve.queue.connection import translated
from queueserve.queue.exchange import CALL_TIMEOUT
from queueserve.queue.functions import Functions
from queueserve.queue.keys import Keys, checked_pool

State: TypeAlias = Literal[
    "queued", "running", "orphaned", "done", "failed", "cancelled", "expired"
]
MAX_ATTEMPTS = 3
_US = 1_000_000


class Standing(NamedTuple):
    """How a job stands in Redis."""

    new: bool  # this call has created it
    state: State
    epoch: int  # 0: never dispatched
    worker: str  # "": none
    position: int  # 1 is the head of the queue; 0: not in the queue
    result: Result | Answer | None  # of a job that is done
    error: QueueServeError | None  # of a job that has failed or expired


@dataclass(frozen=True, slots=True)
class Place:
    """Where the first of some jobs stands in the queue."""

    position: int  # 1 is the head
    wait: float | None  # seconds, at the rate at which jobs finish now; None: none has finished


@dataclass(frozen=True, slots=True)
class Holder:
    """Who runs a job."""

    state: State
    epoch: int
    worker: str  # "": nobody


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds of one pool's queue, in jobs."""

    max_queue: int = 10_000
    max_queue_per_tenant: int = 5_000


def _ended(
    job: Job, state: str, body: bytes
) -> tuple[Result | Answer | None, QueueServeError | None]:
    """What a job that has ended in `state` has left: its output, or why there is none."""
    if not body:
        return None, None
    if state == "done":
        return (decode_result(body) if job.inputs is None else decode_answer(body)), None
    why = decode_failure(body).error
    return None, from_code(why.code, why.message, why.param)


def _standing(job: Job, answer: list[Any]) -> Standing:
    try:
        verdict, told, epoch, worker, position, body = answer
        state, new = told.decode(), verdict == b"new"
        result, error = _ended(job, state, body)
        return Standing(new, state, int(epoch), worker.decode(), position, result, error)
    except (ValueError, TypeError, AttributeError) as problem:  # somebody else has written the job
        raise ProtocolError(f"not a job: {problem}") from problem


def _holder(state: bytes | None, epoch: bytes | None, worker: bytes | None) -> Holder | None:
    if state is None or epoch is None or not epoch.isdigit():
        return None
    told: Any = state.decode(errors="replace")
    holder = b"" if worker is None or state == b"queued" else worker
    return Holder(told, int(epoch), holder.decode(errors="replace"))


class Producer:
    """Speaks for one API server; every call names the incarnation `api` it speaks for."""

    def __init__(
        self, functions: Functions, keys: Keys, *, heartbeat_timeout: float, limits: Limits
    ) -> None:
        self._functions = functions
        self._keys = keys
        self._timeout_us = int(heartbeat_timeout * _US)
        self._limits = limits

    async def load(self) -> None:
        """Load the function library. Raises RedisUnavailableError."""
        await self._functions.load()

    async def submit(
        self,
        job: Job,
        api: str,
        *,
        new_api: bool,
        reader: str = "",
        resume: Continuation | None = None,
        known: bool = False,
    ) -> Standing:
        """Queue the job, or become the reader of one that is there. Safe to call again.

        `new_api`: it is `api`'s first call for the pool. `reader`: which of the API server's it is.
        `known`: the job was acknowledged before, so no bound refuses it. Raises QueueFullError,
        IdempotencyConflictError, ServerExpiredError, RedisUnavailableError.
        """
        body, light = encode(job), job.kind in LIGHT_KINDS
        answer = await self._functions.call(
            "submit",
            self._keys.pool(checked_pool(job.pool)).root,
            job.id,
            api,
            self._timeout_us,
            int(new_api),
            body,
            hashlib.blake2b(body, digest_size=8).hexdigest(),
            0 if light else job.priority,  # else it waits behind what waits for a slot
            job.tenant,
            1,
            job.cost,
            int(job.queue_timeout * _US),
            int(job.timeout * _US),
            int(job.grace * _US),
            MAX_ATTEMPTS,
            self._limits.max_queue,
            self._limits.max_queue_per_tenant,
            encode(resume) if resume else b"",
            int(known),
            int(light),
            reader,
        )
        match answer[0]:
            case b"full":
                raise QueueFullError(
                    f"The queue of {job.pool!r} is full: {answer[4]} jobs wait.",
                    retry_after=float(answer[5]),
                )
            case b"conflict":
                raise IdempotencyConflictError(
                    "This Idempotency-Key was used with another request body."
                )
            case b"gone":
                raise ServerExpiredError("This API server's registration has expired; try again.")
            case _:
                return _standing(job, answer)

    async def resume(self, job: Job, api: str, epoch: int, at: Continuation | None) -> bool:
        """Send an orphaned job on from `at` (None: from the start, nothing was sent yet).

        False if `epoch` is not the orphan's any more.
        """
        answer = await self._functions.call(
            "resume",
            self._keys.pool(job.pool).root,
            job.id,
            epoch,
            api,
            encode(at) if at else b"",
            int(job.queue_timeout * _US),
        )
        return bool(answer == b"resumed")

    async def holders(self, jobs: Sequence[Job]) -> list[Holder | None]:
        """Who runs each job; None for one that is not there. Raises RedisUnavailableError."""
        with translated():
            async with (
                asyncio.timeout(CALL_TIMEOUT),
                self._functions.redis.pipeline(transaction=False) as pipe,
            ):
                for job in jobs:
                    key = self._keys.pool(job.pool).job(job.id)
                    pipe.hmget(key, "state", "epoch", "worker")  # type: ignore[arg-type]
                rows = await pipe.execute(raise_on_error=False)
        return [None if isinstance(row, Exception) else _holder(*row) for row in rows]

    async def reader(self, job: Job) -> str | None:
        """The API server that reads the job; None for a job that is not there."""
        key = self._keys.pool(job.pool).job(job.id)
        with translated():
            async with asyncio.timeout(CALL_TIMEOUT):
                reader = await self._functions.redis.hget(key, "api")  # type: ignore[misc]
        return reader.decode() if reader else None

    async def place(self, jobs: Sequence[Job]) -> Place | None:
        """The best place of these jobs of one pool; None if none waits."""
        pool = self._keys.pool(jobs[0].pool)
        with translated():
            async with (
                asyncio.timeout(CALL_TIMEOUT),
                self._functions.redis.pipeline(transaction=False) as pipe,
            ):
                pipe.hget(pool.state, "rate")
                for job in jobs:
                    pipe.zrank(pool.queue, job.id)
                rate, *ranks = await pipe.execute()
        waiting = [rank for rank in ranks if rank is not None]
        if not waiting:
            return None
        position = min(waiting) + 1
        return Place(position, position / float(rate) if rate else None)

    async def cancel(self, job: Job, api: str, reader: str = "") -> str:
        """Stop the job, wherever it is; with a grace time, only let go of it. Returns its state.

        A job that another reader has taken over is left alone.
        """
        root = self._keys.pool(job.pool).root
        state: bytes = await self._functions.call("cancel", root, job.id, api, reader)
        return state.decode()

    async def stop(self, pool: str, job: str) -> None:
        """Stop a job, whichever API server reads it: that one is told."""
        await self._functions.call("cancel", self._keys.pool(checked_pool(pool)).root, job, "", "")

    async def resync(self, job: Job, api: str, worker: str, seq: int) -> None:
        """Ask the worker to publish the job's events again, from output token `seq` on."""
        channel = self._keys.pool(job.pool).control(worker)
        with translated():
            await self._functions.redis.publish(channel, f"resync {seq} {api} {job.id}")
