"""A worker's way out: events and the ends of jobs, in order, on one connection at a time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from queueserve.encoding import encode_events
from queueserve.errors import RedisUnavailableError
from queueserve.protocol import Event
from queueserve.queue.connection import translated
from queueserve.queue.consumer import Consumer, Finish
from queueserve.queue.exchange import Line, pack
from queueserve.queue.functions import Functions
from queueserve.queue.keys import Keys

log = logging.getLogger(__name__)

_RETRY = 0.1  # seconds
_FINISHES = 256  # in one pipeline


class Publisher:
    """Publishes one message per API server and engine step.

    What arrives while a message is on its way goes out together with the next one: there is no
    timer. A job's last events leave before its `finish`. Events that are lost with a connection are
    not kept, the reader sees the gap and asks for them; a finish is sent until it is acknowledged.

    `confirmed` says whether the worker's lease is certain: while it is not, nothing leaves.
    """

    def __init__(
        self,
        redis: Redis,
        functions: Functions,
        keys: Keys,
        *,
        confirmed: Callable[[], bool],
        acknowledged: Callable[[Finish], None],
    ) -> None:
        self._line = Line(redis)
        self._functions = functions
        self._keys = keys
        self._confirmed = confirmed
        self._acknowledged = acknowledged
        self._events: dict[str, list[Event]] = {}
        self._finishes: dict[tuple[str, int], tuple[Consumer, Finish]] = {}
        self._wake = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    def publish(self, api: str, event: Event) -> None:
        """Send `event` to an API server with the next message."""
        if batch := self._events.get(api):
            batch.append(event)
            return
        self._events[api] = [event]
        self._empty.clear()
        self._wake.set()

    def finish(self, consumer: Consumer, end: Finish) -> None:
        """Report the end of a job, after its events."""
        self._finishes[end.job, end.epoch] = (consumer, end)
        self._empty.clear()
        self._wake.set()

    async def flushed(self) -> None:
        """Wait until nothing is left to send, and every finish is acknowledged."""
        await self._empty.wait()

    async def run(self) -> None:
        """Publish for ever."""
        with contextlib.suppress(RedisUnavailableError), translated():
            await self._line.call("PING")  # the first token must not wait for a connection
        while True:
            await self._wake.wait()
            self._wake.clear()
            if not self._confirmed():
                self._events.clear()
                await self._later()
                continue
            try:
                await self._send()
            except RedisUnavailableError as error:
                log.debug("publishing: %s", error.message)
                await self._later()

    async def _later(self) -> None:
        await asyncio.sleep(_RETRY)
        self._go_on()

    async def _send(self) -> None:
        events, self._events = self._events, {}
        finishes = list(self._finishes.values())[:_FINISHES]
        commands = [
            pack(("PUBLISH", self._keys.reply(api), encode_events(batch)))
            for api, batch in events.items()
        ]
        commands += [pack(("FCALL", *consumer.finish_args(end))) for consumer, end in finishes]
        with translated():
            answers = await self._line.exchange(commands)
        await self._settle(finishes, answers[len(events) :])

    async def _settle(
        self, finishes: list[tuple[Consumer, Finish]], answers: list[bytes | Exception]
    ) -> None:
        refused: Exception | None = None
        for (_, end), answer in zip(finishes, answers, strict=True):
            if isinstance(answer, ResponseError) and "Function not found" in str(answer):
                await self._functions.load()  # a new Redis; the finish goes out again
                self._wake.set()
                return
            if isinstance(answer, Exception):
                refused = answer  # it goes out again; the others must not wait for it
                continue
            if answer == b"stale":
                log.info("job %s was finished here, but runs elsewhere", end.job)
            self._finishes.pop((end.job, end.epoch), None)
            self._acknowledged(end)
        if refused:
            raise RedisUnavailableError(f"finish: {refused}") from refused
        self._go_on()

    def _go_on(self) -> None:
        if self._events or self._finishes:
            self._wake.set()
        else:
            self._empty.set()  # also where events were lost: nothing is left to wait for
