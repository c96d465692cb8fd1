"""An API server's control plane and fake-engine workers in one process, on a real Redis."""

from __future__ import annotations

import asyncio
import contextlib
import itertools

import pytest
from redis.exceptions import RedisError

from queueserve.protocol import Delta, Finished, Job, Sampling
from queueserve.queue.connection import open_redis
from queueserve.queue.plane import open_control_plane
from workers.engines.fake import FakeEngine
from workers.settings import WorkerSettings
from workers.worker import Worker

HEARTBEAT = 6.0  # seconds: a busy machine may stop a test for some
BOUND = 60.0  # seconds that any single wait may take, on however busy a machine


class House:
    """Everything one test starts; closed with it."""

    def __init__(self, redis_url: str, stack: contextlib.AsyncExitStack) -> None:
        self.redis_url = redis_url
        self.redis = open_redis(redis_url)
        self._stack = stack
        self._ids = itertools.count()

    async def worker(self, engine=None, **settings) -> tuple[Worker, asyncio.Event]:
        """A worker that is registered, and the event that stops it."""
        options = {"model_names": ("m",), "heartbeat_timeout": HEARTBEAT, "grace": 0.2} | settings
        worker = Worker(
            engine or FakeEngine(tick=0.005), WorkerSettings(redis_url=self.redis_url, **options)
        )
        stop = asyncio.Event()
        task = asyncio.create_task(worker.run(stop))
        self._stack.push_async_callback(self._end, task, stop)
        await self.until(self._registered(worker), equal=1)
        return worker, stop

    def _registered(self, worker: Worker):
        async def look() -> int:
            current = worker._current
            return int(current is not None)

        return look

    async def _end(self, task: asyncio.Task, stop: asyncio.Event) -> None:
        stop.set()
        async with asyncio.timeout(BOUND):
            await task

    async def plane(self, **options):
        options = {"heartbeat_timeout": HEARTBEAT} | options
        opened = open_control_plane(self.redis_url, **options)
        return await self._stack.enter_async_context(opened)

    async def until(self, look, *, above: int | None = None, equal: int | None = None) -> None:
        """Wait until what `look` gives is above or equal to a number."""
        async with asyncio.timeout(BOUND):
            while True:
                with contextlib.suppress(OSError, RedisError):
                    value = await look()
                    if (value > above) if above is not None else (value == equal):
                        return
                await asyncio.sleep(0.01)

    def job(self, **changes) -> Job:
        sampling = {"temperature": 0.0, "max_tokens": 40, "ignore_eos": True}
        sampling |= changes.pop("sampling", {})
        fields = {
            "id": f"j{next(self._ids)}",
            "pool": "m",
            "model": "m",
            "kind": "chat",
            "messages": ({"role": "user", "content": "hello"},),
            "sampling": Sampling(**sampling),
        }
        return Job(**(fields | changes))

    async def close(self) -> None:
        await self.redis.aclose()


async def read(stream, *, after: int | None = None, then=None) -> tuple[str, list[int], Finished]:
    """Everything of a stream; when `after` tokens are there, `then` is awaited once."""
    text, tokens, end = "", [], None
    async with asyncio.timeout(BOUND):
        async for events in stream:
            for event in events:
                if isinstance(event, Delta):
                    assert (event.seq, event.pos) == (len(tokens), len(text))
                    text += event.text
                    tokens += event.tokens
                elif isinstance(event, Finished):
                    text += event.text
                    end = event
            if after is not None and len(tokens) >= after:
                after = None
                await then()
    assert end is not None
    assert end.seq == len(tokens)
    return text, tokens, end


@pytest.fixture
def soon_missed(monkeypatch):
    """A stream that says nothing is asked about soon."""
    monkeypatch.setattr("queueserve.queue.owner._WATCH", 0.1)
    monkeypatch.setattr("queueserve.queue.owner._SILENT_RUNNING", 0.5)


@pytest.fixture
async def house(redis_url):
    async with contextlib.AsyncExitStack() as stack:
        house = House(redis_url, stack)
        stack.push_async_callback(house.close)
        yield house


@pytest.fixture(name="read")
def read_fixture():
    return read
