"""The worker's side of the queue: register, beat, claim, finish, drain."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from redis.asyncio import Redis

from queueserve.encoding import decode_continuation, decode_job
from queueserve.errors import ProtocolError
from queueserve.protocol import Continuation, Job
from queueserve.queue.connection import translated
from queueserve.queue.exchange import Line, pack
from queueserve.queue.functions import Functions
from queueserve.queue.keys import Keys
from queueserve.queue.skips import skip

log = logging.getLogger(__name__)

Outcome: TypeAlias = Literal["done", "failed", "cancelled"]
RESULT_KEPT = 120.0  # seconds
_US = 1_000_000
_CLAIM_WAIT = 10.0  # seconds of one blocking pop
_CLAIM_MOST = 64
_OF_A_JOB = ("epoch", "state", "api", "body", "resume", "cancel")
_EPOCH_DIGITS = 20  # more are not a time in µs, but somebody's joke
_LONGEST_HINT = 32768  # bytes; ours bring along bodies of half of that


@dataclass(frozen=True, slots=True)
class Assignment:
    """A claimed job with all that running it needs."""

    job: Job
    epoch: int
    api: str  # whose reply channel the events go to
    resume: Continuation | None
    cancelled: bool  # its reader has gone in the meantime: only the finish is left to do


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that was dispatched to this worker."""

    job: str
    epoch: int
    carried: Assignment | ProtocolError | None = field(default=None, compare=False)
    """What `fetch` would have told when it was dispatched, if its hint brought that along."""


@dataclass(frozen=True, slots=True)
class Lease:
    """What Redis says that this worker holds."""

    epoch: int
    cancelled: bool


@dataclass(frozen=True, slots=True)
class Beat:
    """The answer to a heartbeat."""

    verdict: Literal["ok", "register", "gone"]
    snapshot: int  # an epoch that is absent from `leases`, and not above this, was taken away
    leases: dict[str, Lease]


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of a job, as its worker reports it."""

    job: str
    epoch: int
    outcome: Outcome
    result: bytes = b""
    cost: int = 0  # tokens it really took; 0: unknown
    keep: float = RESULT_KEPT  # seconds for which a reader can fetch the result


class Consumer:
    """Speaks for one incarnation of a worker in one pool."""

    def __init__(
        self, functions: Functions, keys: Keys, pool: str, worker: str, *, heartbeat_timeout: float
    ) -> None:
        self._functions = functions
        self._keys = keys.pool(pool)
        self.worker = worker
        self._timeout_us = int(heartbeat_timeout * _US)

    async def register(self, *, slots: int, speed: float, about: Mapping[str, str | int]) -> None:
        """Join the pool. Raises RedisUnavailableError."""
        pairs = [part for pair in about.items() for part in pair]
        await self._call("register", self.worker, self._timeout_us, slots, speed, *pairs)

    async def heartbeat(self, *, steps: int, rate: float) -> Beat:
        """Renew the registration. `rate`: tokens/s of one sequence, 0 to leave the speed alone."""
        answer = await self._call("heartbeat", self.worker, self._timeout_us, steps, rate)
        verdict, snapshot, *pairs = answer
        leases = {}
        for name, value in zip(pairs[::2], pairs[1::2], strict=True):
            job, lease = name.decode(errors="replace"), _lease(value)
            if lease is None:
                skip(log, "lease", f"of {self.worker} on {job[:100]!r}: {value[:100]!r}")
            else:
                leases[job] = lease
        return Beat(verdict.decode(), snapshot, leases)

    async def claim(self, blocking: Line) -> list[Claim]:
        """Wait for hints in the inbox; an empty list after some seconds.

        A hint is never the only record of a job: one that is lost here comes again with a
        heartbeat. Raises RedisUnavailableError.
        """
        inbox = self._keys.inbox(self.worker)
        pop = ("BLMPOP", _CLAIM_WAIT, 1, inbox, "LEFT", "COUNT", _CLAIM_MOST)
        with translated():
            answer = await blocking.call(*pop)
        claims = []
        for hint in answer[1] if answer else ():
            claim = _claim(hint)
            if claim is None:
                skip(log, "hint", f"for {self.worker}: {hint[:100]!r}")
            else:
                claims.append(claim)
        return claims

    async def fetch(self, claims: list[Claim]) -> list[Assignment | ProtocolError | None]:
        """The jobs behind claims, in their order.

        None: the claim is out of date. ProtocolError: its body cannot be read. Raises
        RedisUnavailableError.
        """
        commands = [pack(("HMGET", self._keys.job(claim.job), *_OF_A_JOB)) for claim in claims]
        with translated():
            rows = await self._functions.line.exchange(commands)
        return [_assignment(claim, row) for claim, row in zip(claims, rows, strict=True)]

    def finish_args(self, end: Finish) -> tuple[str, int, str, str | bytes | int, *tuple[Any, ...]]:
        """The arguments of FCALL for a finish, so that it can ride in a pipeline."""
        name, root = self._functions.name("finish"), self._keys.root
        about = (end.job, end.epoch, end.outcome, end.result, end.cost, int(end.keep * 1000))
        return (name, 1, root, self.worker, *about)

    async def drain(self, *, leave: bool) -> int:
        """Take nothing new; with `leave`, give back what runs and be gone. Returns how many."""
        return int(await self._call("drain", self.worker, int(leave)))

    @property
    def control_channel(self) -> str:
        """Where cancels and resyncs for this worker arrive."""
        return self._keys.control(self.worker)

    async def _call(self, function: str, *args: Any) -> Any:
        return await self._functions.call(function, self._keys.root, *args)


def blocking_line(redis: Redis) -> Line:
    """A line for the claims of one worker, on a client that waits as long as it must."""
    return Line(redis, longer=_CLAIM_WAIT)


def _claim(hint: bytes) -> Claim | None:
    named, *carried = hint.split(b"\n", 2)
    epoch, _, job = named.partition(b" ")
    if not _is_epoch(epoch) or len(hint) > _LONGEST_HINT:
        return None
    return Claim(job.decode(errors="replace"), int(epoch), _carried(int(epoch), *carried))


def _carried(epoch: int, api: bytes = b"", body: bytes = b"") -> Assignment | ProtocolError | None:
    if not body:
        return None
    try:
        return Assignment(decode_job(body), epoch, api.decode(errors="replace"), None, False)
    except ProtocolError as error:
        return error


def _lease(value: bytes) -> Lease | None:
    epoch, _, cancel = value.strip().partition(b" ")
    return Lease(int(epoch), cancelled=bool(cancel)) if _is_epoch(epoch) else None


def _is_epoch(word: bytes) -> bool:
    return word.isdigit() and len(word) < _EPOCH_DIGITS


def _assignment(
    claim: Claim, row: list[bytes | None] | Exception
) -> Assignment | ProtocolError | None:
    if isinstance(row, Exception):  # somebody else's key
        return ProtocolError(f"not a job: {row}")
    epoch, state, api, body, resume, cancel = row
    if epoch != str(claim.epoch).encode() or state != b"running" or body is None or api is None:
        return None
    try:
        job = decode_job(body)
        at = decode_continuation(resume) if resume else None
    except ProtocolError as error:
        return error
    return Assignment(job, claim.epoch, api.decode(errors="replace"), at, cancel is not None)
