"""One registration of a worker in its pool: join, pull jobs, beat, until it is gone."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from queueserve import __version__
from queueserve.errors import ProtocolError, RedisUnavailableError
from queueserve.protocol import ModelCard
from queueserve.queue.clock import lease_clock
from queueserve.queue.connection import of_another, open_blocking_redis
from queueserve.queue.consumer import Assignment, Beat, Claim, Consumer, blocking_line
from queueserve.queue.directory import announce
from queueserve.queue.functions import Functions
from queueserve.queue.keys import Keys, checked_pool
from queueserve.queue.preflight import check
from queueserve.queue.recovery import Reaper
from queueserve.queue.replies import follow
from queueserve.queue.skips import skip
from queueserve.queue.tasks import run_together
from workers.engines.base import Engine, Fallible
from workers.runner import Runner
from workers.settings import WorkerSettings
from workers.templates.dialects import Dialect

log = logging.getLogger(__name__)

_RETRY = 0.2  # seconds between attempts while Redis is away
_DIGITS = 20  # of a number in a control message; more are not ours
_LONGEST_CONTROL = 4096  # bytes; ids are far shorter
_ANNOUNCE_EVERY = 60.0


class GoneError(Exception):
    """Redis has given this incarnation's jobs away; go on as a new one."""


def process_name() -> str:
    """What the ids of this process's workers start with."""
    return f"{socket.gethostname()}-{os.getpid()}"


class Incarnation:
    """A worker under one id: registered, pulling jobs for the runner, beating.

    `confirmed` is called with the lease clock's time of every beat that Redis has answered.
    """

    def __init__(
        self,
        engine: Engine,
        runner: Runner,
        settings: WorkerSettings,
        dialect: Dialect,
        *,
        redis: Redis,
        functions: Functions,
        confirmed: Callable[[float], None],
    ) -> None:
        self._engine = engine
        self.runner = runner
        self._settings = settings
        self._dialect = dialect
        self._redis = redis
        self._functions = functions
        self._confirmed = confirmed
        self._keys = Keys(settings.prefix)
        self._pool = checked_pool(settings.model_names[0])
        self._draining = False
        self._snapshot = 0  # of the last heartbeat
        self.consumer = Consumer(
            functions,
            self._keys,
            self._pool,
            f"{process_name()}-{secrets.token_hex(3)}",
            heartbeat_timeout=settings.heartbeat_timeout,
        )

    async def serve(self) -> None:
        """Pull and beat, once joined, until the engine is lost.

        Raises GoneError, and EngineDiedError if the engine will not come back.
        """
        reaper = Reaper(
            self._functions, self._keys, heartbeat_timeout=self._settings.heartbeat_timeout
        )
        await run_together(
            self._claim(self.consumer),
            self._control(self.consumer),
            self._beat(self.consumer),
            reaper.run(self._pool),
            self._loss(),
        )

    async def drain(self) -> None:
        """Get no new jobs any more; those that run go on."""
        self._draining = True
        await self.consumer.drain(leave=False)

    async def _loss(self) -> None:
        """Wait until the engine is lost. Raises EngineDiedError if it will not come back."""
        if not isinstance(self._engine, Fallible):
            await asyncio.Event().wait()  # no part of it can die alone
            return
        log.warning("%s cannot run for now: %s", self._pool, await self._engine.lost())

    # Registering

    async def join(self) -> None:
        """Register, and wait for a Redis that is not there yet."""
        said = False
        while True:
            try:
                await check(self._redis)
                await announce(self._redis, self._keys, self._cards())
                await self._register(self.consumer)
            except RedisUnavailableError as error:
                if not said:
                    log.warning("waiting for Redis: %s", error.message)
                said = True
                await asyncio.sleep(_RETRY)
            else:
                return

    async def _register(self, consumer: Consumer) -> None:
        info = self._engine.info
        about: dict[str, str | int] = {
            "engine": f"{info.engine} {info.version}",
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": __version__,
            "context_length": info.context_length,
            "started": int(time.time()),
        }
        sent = lease_clock()
        speed = self._settings.speed or 1.0
        await consumer.register(slots=info.slots, speed=speed, about=about)
        self._confirmed(sent)

    def _cards(self) -> list[ModelCard]:
        info, created = self._engine.info, int(time.time())
        return [
            ModelCard(
                tasks=info.kinds,
                name=name,
                pool=self._pool,
                context_length=info.context_length,
                engine=info.engine,
                created=created,
                tool_parser=self._dialect.tools,
                reasoning_parser=self._dialect.reasoning,
                images=info.images,
            )
            for name in (*self._settings.model_names, *info.adapters)
        ]

    # Jobs

    async def _claim(self, consumer: Consumer) -> None:
        blocking = open_blocking_redis(self._settings.redis_url)
        line = blocking_line(blocking)
        try:
            while True:
                try:
                    await self._take(await consumer.claim(line), consumer)
                except RedisUnavailableError as error:
                    if isinstance(error.__cause__, ResponseError) and of_another(error.__cause__):
                        skip(log, "inbox", error.message)  # the jobs come with heartbeats
                    else:
                        log.debug("claim: %s", error.message)
                    await asyncio.sleep(_RETRY)
        finally:
            await line.aclose()
            await blocking.aclose()

    async def _take(self, claims: list[Claim], consumer: Consumer) -> None:
        """Begin with what is claimed.

        What a hint has brought along counts as long as no heartbeat can have told of its job: a
        hint that comes later than that is old, and its job may have been run, or taken away.
        """
        fetched = []
        for claim in claims:
            if claim.carried is not None and claim.epoch > self._snapshot:
                self._begin(claim, claim.carried, consumer)
            elif not self.runner.knows(claim):
                fetched.append(claim)
        if fetched:
            for claim, found in zip(fetched, await consumer.fetch(fetched), strict=True):
                self._begin(claim, found, consumer)

    def _begin(
        self, claim: Claim, found: Assignment | ProtocolError | None, consumer: Consumer
    ) -> None:
        if self.runner.knows(claim):
            return  # its hint and a heartbeat have both told of it
        if isinstance(found, ProtocolError):
            skip(log, "job", f"{claim.job}: {found.message}")
            self.runner.refuse(claim, "", found, consumer)
        elif found is not None:
            self.runner.assign(found, consumer)

    async def _control(self, consumer: Consumer) -> None:
        def message(body: bytes) -> None:
            words = body.decode(errors="replace") if len(body) <= _LONGEST_CONTROL else ""
            match words.split(" ", 3):
                case ["cancel", epoch, job] if _is_number(epoch):
                    self.runner.cancel(job, int(epoch), consumer)
                case ["resync", seq, api, job] if _is_number(seq):
                    self.runner.resync(job, int(seq), api)
                case _:
                    skip(log, "control message", repr(body[:100]))

        await follow(
            self._redis,
            consumer.control_channel,
            subscribed=lambda: None,  # cancels that were missed come with the next heartbeat
            lost=lambda: None,
            message=message,
        )

    # Heartbeats

    async def _beat(self, consumer: Consumer) -> None:
        announced = time.monotonic()
        while True:
            await asyncio.sleep(self._settings.heartbeat_timeout / 5)
            sent = lease_clock()
            rate = 0.0 if self._settings.speed else self.runner.meter.rate()
            try:
                beat = await consumer.heartbeat(steps=self._engine.steps, rate=rate)
                if beat.verdict == "gone":
                    raise GoneError
                if beat.verdict == "register":
                    await self._register(consumer)
                    if self._draining:
                        await consumer.drain(leave=False)
                self._confirmed(sent)
                await self._agree(beat, consumer)
                if time.monotonic() - announced > _ANNOUNCE_EVERY:
                    await announce(self._redis, self._keys, self._cards())
                    announced = time.monotonic()
            except RedisUnavailableError as error:
                log.warning("heartbeat: %s", error.message)

    async def _agree(self, beat: Beat, consumer: Consumer) -> None:
        """Make what runs here and what Redis says the same."""
        self._snapshot = beat.snapshot
        for job, epoch in self.runner.running.items():
            lease = beat.leases.get(job)
            if epoch <= beat.snapshot and (lease is None or lease.epoch != epoch):
                log.info("job %s was taken away", job)
                self.runner.drop(job)
        for job, lease in beat.leases.items():
            claim = Claim(job, lease.epoch)
            if self.runner.finished(claim, consumer):
                continue
            if lease.cancelled and self.runner.knows(claim):
                self.runner.cancel(job, lease.epoch, consumer)
            elif not self.runner.knows(claim):
                await self._take([claim], consumer)


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) < _DIGITS
