"""One model's worker: load it, join the pool, pull jobs, leave."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine
from typing import Any

from queueserve.errors import EngineError, RedisUnavailableError
from queueserve.queue.clock import lease_clock
from queueserve.queue.connection import open_redis
from queueserve.queue.consumer import Consumer, Finish
from queueserve.queue.functions import Functions
from queueserve.queue.keys import Keys, checked_pool
from queueserve.queue.preflight import check
from queueserve.queue.publisher import Publisher
from queueserve.queue.tasks import end
from workers.engines.base import Engine, Fallible, Output
from workers.incarnation import GoneError, Incarnation
from workers.marks import Marks
from workers.prompting import Prompter
from workers.runner import Runner
from workers.settings import WorkerSettings
from workers.templates import choose_template, load_template
from workers.templates.dialects import Dialect, choose_dialect
from workers.templates.render import ChatTemplate
from workers.watchdog import Watchdog

log = logging.getLogger(__name__)

_TICK = 1.0
_FLUSH_WITHIN = 3.0
_LAST_CLAIMS = 0.05  # seconds in which what was dispatched just before the drain is claimed


class Worker:
    """Serves one model from one engine until it is told to stop."""

    def __init__(self, engine: Engine, settings: WorkerSettings) -> None:
        """Raises EngineError for settings that no model could mend."""
        _check(settings)
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
        self._current: Incarnation | None = None
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

    def _confirm(self, sent: float) -> None:
        self._confirmed = sent

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
            await self._drain(incarnations, watched=tasks - {stopping})
            for task in tasks:
                if task.done() and not task.cancelled():
                    task.result()
        finally:
            await end(tasks)
            await self.runner.aclose()

    async def _incarnations(self) -> None:
        while not self._draining:
            try:
                if isinstance(self._engine, Fallible):
                    await self._engine.back()
                await self._incarnation()
            except GoneError:
                log.warning("Redis has given away the jobs of this worker of %s", self._pool)
                self.runner.drop_all()

    async def _incarnation(self) -> None:
        incarnation = Incarnation(
            self._engine,
            self.runner,
            self._settings,
            self._dialect,
            redis=self._redis,
            functions=self._functions,
            confirmed=self._confirm,
        )
        await incarnation.join()
        self._current = incarnation
        self.joined.set()
        names = ", ".join(self._settings.model_names)
        log.info("%s serves %s", incarnation.consumer.worker, names)
        await incarnation.serve()
        await self._leave(incarnation.consumer)

    async def _watch(self) -> None:
        """Raise EngineStuckError once the engine does not come back from a step."""
        if self._engine.info.relays:  # its requests have bounds of their own
            await asyncio.Event().wait()
        timeout = self._settings.stall_timeout
        await Watchdog(self.runner.on_engine, lambda: self._engine.steps, timeout=timeout).run()

    async def _leave(self, consumer: Consumer) -> None:
        """Give everything back while the engine is lost."""
        self._current = None
        self.runner.drop_all()
        with contextlib.suppress(RedisUnavailableError):  # then the registration expires
            await consumer.drain(leave=True)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK)
            self.runner.tick()

    # Leaving

    async def _drain(
        self, incarnations: asyncio.Task[None], *, watched: set[asyncio.Task[Any]]
    ) -> None:
        """Stop pulling, finish what runs within the grace time, give the rest back.

        One of the `watched` that ends tells that nothing will be finished any more.
        """
        self._draining = True
        current = self._current
        if current is None:
            return
        try:
            await current.drain()
            await asyncio.sleep(_LAST_CLAIMS)
            log.info("draining: %d jobs run", len(self.runner.running))
            await self._finish(watched)
            incarnations.cancel()  # from here on nothing may beat, or join again
            self.runner.drop_all()
            await _within(_FLUSH_WITHIN, self._publisher.flushed())
            given_back = await current.consumer.drain(leave=True)
            log.info("left %s; gave %d jobs back", self._pool, given_back)
        except RedisUnavailableError as error:
            log.warning("left without a word, as Redis does not answer: %s", error.message)

    async def _finish(self, watched: set[asyncio.Task[Any]]) -> None:
        idle = asyncio.create_task(self.runner.idle())
        try:
            await asyncio.wait(
                {idle, *watched},
                timeout=self._settings.grace,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            await end({idle})


def _check(settings: WorkerSettings) -> None:
    """Raise what would be raised after minutes of loading."""
    if settings.chat_template is not None:
        ChatTemplate(load_template(settings.chat_template), {})
    choose_dialect(None, tools=settings.tool_parser, reasoning=settings.reasoning_parser)


async def _within(seconds: float, wait: Coroutine[Any, Any, None]) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await wait
