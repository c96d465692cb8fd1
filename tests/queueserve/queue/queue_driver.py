"""Short words for what API servers and workers do to a pool, on a clock that stands still."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import Any

import orjson
from redis.asyncio import Redis

from queueserve.protocol import Continuation, Job
from queueserve.queue.consumer import Beat, Consumer, Finish, Outcome
from queueserve.queue.functions import Functions
from queueserve.queue.keys import Keys
from queueserve.queue.producer import Limits, Producer, Standing
from queueserve.queue.recovery import Reaped, Reaper

US = 1_000_000
START = 1_800_000_000 * US  # as long as a real time: digits that get lost would show
TIMEOUT = 15.0


class Ear:
    """Hears what is published on one channel."""

    def __init__(self, pubsub: Any) -> None:
        self._pubsub = pubsub

    async def heard(self) -> list[bytes]:
        """What was published since the last call, and nothing that comes later."""
        await self._pubsub.ping()
        messages = []
        while True:
            kind, *rest = await self._pubsub.parse_response()
            if kind == b"pong":
                return messages
            if kind == b"message":
                messages.append(rest[1])

    async def next_events(self) -> list[list[Any]]:
        """The events of the next message, however late it is."""
        while True:
            kind, *rest = await self._pubsub.parse_response()
            if kind == b"message":
                return orjson.loads(rest[1])

    async def events(self) -> list[list[Any]]:
        """The events in `heard`."""
        return [event for message in await self.heard() for event in orjson.loads(message)]


class PoolDriver:
    """One pool, `m`, as API servers (`a`, `b`, …) and workers (`w`, …) use it."""

    def __init__(self, redis: Redis, functions: Functions, keys: Keys) -> None:
        self.redis = redis
        self.functions = functions
        self.names = keys
        self.keys = keys.pool("m")
        self.root = self.keys.root
        self.limits = Limits()
        self.reaper = Reaper(functions, keys, heartbeat_timeout=TIMEOUT)
        self.time = START

    async def set_time(self, time: int) -> None:
        self.time = time
        await self.functions.call("freeze", self.root, time)

    async def wait(self, seconds: float) -> None:
        """Let time pass, with nobody there who could have seen it."""
        await self.set_time(self.time + round(seconds * US))

    async def live(self, seconds: float, *, workers: str = "", apis: str = "") -> None:
        """Let time pass, in which these workers and API servers beat, and the reaper runs."""
        end = self.time + round(seconds * US)
        while self.time < end:
            await self.set_time(min(end, self.time + 3 * US))
            for worker in workers.split():
                await self.beat(worker)
            for api in apis.split():
                await self.reap(api=api)
            await self.reap()

    # API servers

    def job(self, name: str, **fields: Any) -> Job:
        return Job(**{"id": name, "pool": "m", "model": "m", "kind": "completion"} | fields)

    @property
    def producer(self) -> Producer:
        return Producer(self.functions, self.names, heartbeat_timeout=TIMEOUT, limits=self.limits)

    async def submit(
        self,
        name: str,
        api: str = "a",
        *,
        new_api: bool = True,
        resume: Continuation | None = None,
        known: bool = False,
        **fields: Any,
    ) -> Standing:
        job = self.job(name, **fields)
        return await self.producer.submit(job, api, new_api=new_api, resume=resume, known=known)

    async def resume(
        self,
        name: str,
        epoch: int,
        api: str = "a",
        at: Continuation | None = None,
        wait: float = 60,
    ) -> bool:
        job = self.job(name, queue_timeout=wait)
        return await self.producer.resume(job, api, epoch, at)

    async def cancel(self, name: str, api: str = "a", reader: str = "") -> str:
        return await self.producer.cancel(self.job(name), api, reader)

    async def reap(self, *, api: str = "", dead: str = "") -> Reaped:
        return await self.reaper.reap("m", api=api, dead=dead)

    # Workers

    def consumer(self, worker: str) -> Consumer:
        return Consumer(self.functions, self.names, "m", worker, heartbeat_timeout=TIMEOUT)

    async def register(self, *workers: str, slots: int = 1, speed: float = 1.0) -> None:
        for worker in workers:
            await self.consumer(worker).register(slots=slots, speed=speed, about={"host": "h"})

    async def outlast(self, worker: str) -> None:
        """Keep a registration for as long as the test takes: Redis' own clock goes on."""
        assert await self.redis.persist(self.keys.worker(worker))

    async def beat(self, worker: str, *, rate: float = 0.0) -> Beat:
        return await self.consumer(worker).heartbeat(steps=1, rate=rate)

    async def finish(
        self,
        worker: str,
        job: str,
        *,
        epoch: int | None = None,
        outcome: Outcome = "done",
        result: bytes = b"",
        cost: int = 0,
    ) -> str:
        """Finish a job, by default under the epoch that it has now; returns the verdict."""
        end = Finish(job, await self.epoch(job) if epoch is None else epoch, outcome, result, cost)
        args = self.consumer(worker).finish_args(end)
        return (await self.redis.execute_command("FCALL", *args)).decode()

    async def finish_all(self, worker: str, *, cost: int = 0) -> None:
        """Finish all that the worker runs now, in one round trip."""
        leases = await self.redis.hgetall(self.keys.lease(worker))
        async with self.redis.pipeline(transaction=False) as pipe:
            for job, epoch in leases.items():
                end = Finish(job.decode(), int(epoch), "done", b"", cost)
                pipe.execute_command("FCALL", *self.consumer(worker).finish_args(end))
            await pipe.execute()

    async def drain(self, worker: str, *, leave: bool = False) -> int:
        return await self.consumer(worker).drain(leave=leave)

    # What is there

    async def field(self, job: str, name: str) -> str | None:
        value = await self.redis.hget(self.keys.job(job), name)
        return None if value is None else value.decode()

    async def state(self, job: str) -> str | None:
        return await self.field(job, "state")

    async def states(self, *jobs: str) -> list[str | None]:
        return [await self.state(job) for job in jobs]

    async def epoch(self, job: str) -> int:
        return int(await self.field(job, "epoch") or 0)

    async def worker_of(self, job: str) -> str | None:
        return await self.field(job, "worker") if await self.state(job) == "running" else None

    async def queued(self) -> list[str]:
        return [job.decode() for job in await self.redis.zrange(self.keys.queue, 0, -1)]

    async def hints(self, worker: str) -> list[str]:
        """What its inbox says of the jobs in it: "epoch job" of each."""
        hints = await self.redis.lrange(self.keys.inbox(worker), 0, -1)
        return [hint.decode().partition("\n")[0] for hint in hints]

    async def leases(self, worker: str) -> set[str]:
        return {job.decode() for job in await self.redis.hkeys(self.keys.lease(worker))}

    @asynccontextmanager
    async def listening(self, channel: str):
        pubsub = self.redis.pubsub()
        await pubsub.subscribe(channel)
        await pubsub.parse_response()
        try:
            yield Ear(pubsub)
        finally:
            await pubsub.aclose()

    def listening_as(self, api: str = "a"):
        return self.listening(self.names.reply(api))
