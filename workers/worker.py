"""One model's worker: load it, join the pool, pull jobs, leave."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from queueserve import __version__
from queueserve.errors import EngineError, ProtocolError, RedisUnavailableError
from queueserve.protocol import ModelCard
from queueserve.queue.clock import lease_clock
from queueserve.queue.connection import open_blocking_redis, open_redis
from queueserve.queue.consumer import Beat, Claim, Consumer, Finish
from queueserve.queue.directory import announce
from queueserve.queue.functions import Functions
from queueserve.queue.keys import Keys, checked_pool
from queueserve.queue.preflight import check
from queueserve.queue.publisher import Publisher
from queueserve.queue.recovery import Reaper
from queueserve.queue.replies import follow
from queueserve.queue.skips import skip
from queueserve.queue.tasks import end, run_together
from workers.defaults import Defaults
from workers.engines.base import Engine, Fallible, Output
from workers.marks import Marks
from workers.prompting import Prompter
from workers.runner import Runner
from workers.templates import choose_template
from workers.templates.dialects import Dialect, choose_dialect
from workers.watchdog import Watchdog

log = logging.getLogger(__name__)

_RETRY = 0.2  # seconds between attempts while Redis is away
_TICK = 1.0
_DIGITS = 20  # of a number in a control message; more are not ours
_ANNOUNCE_EVERY = 60.0
_FLUSH_WITHIN = 3.0
_LAST_CLAIMS = 0.05  # seconds in which what was dispatched just before the drain is claimed


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """How a worker takes part; all times in seconds."""

    redis_url: str
    model_names: tuple[str, ...]  # the first one names the pool
    prefix: str = "qs:"
    heartbeat_timeout: float = 15.0
    grace: float = 30.0
    stall_timeout: float = 300.0  # an engine without a step for so long is stuck
    stream_interval: int = 1
    speed: float | None = None  # relative to the model's fastest worker; None: measured
    truncate: bool = False  # inputs of embeddings that are too long, where requests do not say
    chat_template: str | None = None  # a known template or a file; None: the model's own
    tool_parser: str = "auto"  # auto: read from the chat template
    reasoning_parser: str = "auto"
    model_path: str = ""  # its card may name a template where the model has none
    defaults: Defaults = field(default_factory=dict)  # sampling that requests leave open


class _Gone(Exception):  # noqa: N818 - a message, not an error
    """Redis has given this incarnation's jobs away; go on as a new one."""


def process_name() -> str:
    """What the ids of this process's workers start with."""
    return f"{socket.gethostname()}-{os.getpid()}"


class Worker:
    """Serves one model from one engine until it is told to stop."""

    def __init__(self, engine: Engine, settings: WorkerSettings) -> None:
        self._engine = engine
        self._settings = settings
        self._pool = checked_pool(settings.model_names[0])
        self._keys = Keys(settings.prefix)
        self._redis = open_redis(settings.redis_url)
        self._functions = Functions(self._redis)
        self._confirmed = 0.0  # when the last good beat was sent, on the lease clock
        self._publisher = Publisher(
            self._redis,
            self._functions,
            self._keys,
            confirmed=self._is_confirmed,
            acknowledged=self._acknowledged,
        )
        self._dialect = Dialect()
        self._runner: Runner | None = None
        self._consumer: Consumer | None = None
        self._draining = False
        self.names = settings.model_names
        self.joined = asyncio.Event()  # set once it is registered

    async def run(self, stop: asyncio.Event) -> None:
        """Load, serve until `stop` is set, drain, close.

        Raises EngineError if it cannot load, RedisConfigurationError for a Redis that cannot do.
        """
        try:
            with contextlib.suppress(RedisUnavailableError):  # it may come while the model loads
                await check(self._redis)
            if await self._load(stop):
                await self._serve(stop)
        finally:
            await self._engine.close()
            await self._redis.aclose()

    async def _load(self, stop: asyncio.Event) -> bool:
        began = time.monotonic()
        log.info("loading %s", self._pool)
        loading = asyncio.create_task(self._engine.start(self._outputs))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not loading.done():
            loading.cancel()
            await asyncio.wait({loading})
            return False
        await loading
        if self._engine.info.relays and self._settings.chat_template:
            raise EngineError("--chat-template: the server behind this worker renders its own")
        template = choose_template(
            option=self._settings.chat_template,
            own=self._engine.tokenizer.chat_template,
            model_path=self._settings.model_path,
        )
        tokenizer, settings = self._engine.tokenizer, self._settings
        self._dialect = choose_dialect(
            template, tools=settings.tool_parser, reasoning=settings.reasoning_parser
        )
        self._runner = Runner(
            self._engine,
            Prompter(tokenizer, template, self._dialect),
            self._publisher,
            stream_interval=settings.stream_interval,
            defaults=settings.defaults,
            truncate=settings.truncate,
            marks=await Marks.of(tokenizer, self._dialect),
        )
        took = time.monotonic() - began
        log.info("%s is loaded after %.1f s: %s", self._pool, took, self._engine.info)
        return True

    @property
    def runner(self) -> Runner:
        """The runner, once the model is loaded."""
        assert self._runner is not None  # noqa: S101 - made by _load
        return self._runner

    def _outputs(self, outputs: list[Output]) -> None:
        self.runner.outputs(outputs)

    def _acknowledged(self, end: Finish) -> None:
        self.runner.acknowledged(end)

    def _is_confirmed(self) -> bool:
        return lease_clock() - self._confirmed < self._settings.heartbeat_timeout

    # Serving

    async def _serve(self, stop: asyncio.Event) -> None:
        publishing = asyncio.create_task(self._publisher.run())
        ticking = asyncio.create_task(self._tick())
        incarnations = asyncio.create_task(self._incarnations())
        stopping = asyncio.create_task(stop.wait())
        watching = asyncio.create_task(self._watch())
        tasks: set[asyncio.Task[Any]] = {publishing, ticking, incarnations, stopping, watching}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # one that failed ends the worker with its reason
            await self._drain(incarnations)
        finally:
            await end(tasks)
            await self.runner.aclose()

    async def _incarnations(self) -> None:
        while True:
            try:
                if isinstance(self._engine, Fallible):
                    await self._engine.back()
                await self._incarnation()
            except _Gone:
                log.warning("Redis has given away the jobs of this worker of %s", self._pool)
                self.runner.drop_all()
                if self._draining:
                    return

    async def _incarnation(self) -> None:
        worker = f"{process_name()}-{secrets.token_hex(3)}"
        consumer = Consumer(
            self._functions,
            self._keys,
            self._pool,
            worker,
            heartbeat_timeout=self._settings.heartbeat_timeout,
        )
        await self._join(consumer)
        self._consumer = consumer
        self.joined.set()
        log.info("%s serves %s", worker, ", ".join(self._settings.model_names))
        reaper = Reaper(
            self._functions, self._keys, heartbeat_timeout=self._settings.heartbeat_timeout
        )
        await run_together(
            self._claim(consumer),
            self._control(consumer),
            self._beat(consumer),
            reaper.run(self._pool),
            self._loss(),
        )
        await self._leave(consumer)

    async def _watch(self) -> None:
        """Raise EngineStuckError once the engine does not come back from a step."""
        if self._engine.info.relays:  # its requests have bounds of their own
            await asyncio.Event().wait()
        timeout = self._settings.stall_timeout
        await Watchdog(self.runner.on_engine, lambda: self._engine.steps, timeout=timeout).run()

    async def _loss(self) -> None:
        """Wait until the engine is lost. Raises EngineDiedError if it will not come back."""
        if not isinstance(self._engine, Fallible):
            await asyncio.Event().wait()  # no part of it can die alone
            return
        log.warning("%s cannot run for now: %s", self._pool, await self._engine.lost())

    async def _leave(self, consumer: Consumer) -> None:
        """Give everything back while the engine is lost."""
        self._consumer = None
        self.runner.drop_all()
        with contextlib.suppress(RedisUnavailableError):  # then the registration expires
            await consumer.drain(leave=True)

    async def _join(self, consumer: Consumer) -> None:
        """Register, and wait for a Redis that is not there yet."""
        said = False
        while True:
            try:
                await check(self._redis)
                await announce(self._redis, self._keys, self._cards())
                await self._register(consumer)
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
        self._confirmed = sent

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
            )
            for name in (*self._settings.model_names, *info.adapters)
        ]

    async def _claim(self, consumer: Consumer) -> None:
        blocking = open_blocking_redis(self._settings.redis_url)
        try:
            while True:
                try:
                    await self._take(await consumer.claim(blocking), consumer)
                except RedisUnavailableError as error:
                    log.debug("claim: %s", error.message)
                    await asyncio.sleep(_RETRY)
        finally:
            await blocking.aclose()

    async def _take(self, claims: list[Claim], consumer: Consumer) -> None:
        new = [claim for claim in claims if not self.runner.knows(claim)]
        if not new:
            return
        for claim, found in zip(new, await consumer.fetch(new), strict=True):
            if isinstance(found, ProtocolError):
                log.error("job %s: %s", claim.job, found.message)
                self.runner.refuse(claim, "", found, consumer)
            elif found is not None:
                self.runner.assign(found, consumer)

    async def _control(self, consumer: Consumer) -> None:
        def message(body: bytes) -> None:
            match body.decode(errors="replace").split(" ", 3):
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
                    raise _Gone
                if beat.verdict == "register":
                    await self._register(consumer)
                    if self._draining:
                        await consumer.drain(leave=False)
                self._confirmed = sent
                await self._agree(beat, consumer)
                if time.monotonic() - announced > _ANNOUNCE_EVERY:
                    await announce(self._redis, self._keys, self._cards())
                    announced = time.monotonic()
            except RedisUnavailableError as error:
                log.warning("heartbeat: %s", error.message)

    async def _agree(self, beat: Beat, consumer: Consumer) -> None:
        """Make what runs here and what Redis says the same."""
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

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK)
            self.runner.tick()

    # Leaving

    async def _drain(self, incarnations: asyncio.Task[None]) -> None:
        """Stop pulling, finish what runs within the grace time, give the rest back."""
        self._draining = True
        consumer = self._consumer
        if consumer is None:
            return
        try:
            await consumer.drain(leave=False)
            await asyncio.sleep(_LAST_CLAIMS)
            log.info("draining: %d jobs run", len(self.runner.running))
            await _within(self._settings.grace, self.runner.idle())
            incarnations.cancel()  # from here on nothing may beat, or join again
            self.runner.drop_all()
            await _within(_FLUSH_WITHIN, self._publisher.flushed())
            given_back = await consumer.drain(leave=True)
            log.info("left %s; gave %d jobs back", self._pool, given_back)
        except RedisUnavailableError as error:
            log.warning("left without a word, as Redis does not answer: %s", error.message)


async def _within(seconds: float, wait: Coroutine[Any, Any, None]) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await wait


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) < _DIGITS
