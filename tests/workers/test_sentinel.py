"""Sentinel, with real processes: the master is killed under load, and another one takes over."""

from __future__ import annotations

import asyncio
import signal

import pytest
from msgspec.structs import replace

from queueserve.errors import QueueServeError, RedisConfigurationError
from queueserve.protocol import Delta, Finished
from queueserve.queue.connection import open_redis
from queueserve.queue.preflight import check
from workers.engines.fake import FakeEngine

BOUND = 40.0
LONG = 15.0  # seconds, the default heartbeat timeout: a fail-over is shorter


@pytest.fixture
def redis_url(sentinel_url):
    """Of the master that the sentinels name."""
    return sentinel_url


async def served(house, plane, read) -> int:
    """Ask until it is answered: the way clients retry a 503."""
    async with asyncio.timeout(BOUND):
        while True:
            try:
                return len((await read(await plane.owner.open(house.job())))[1])
            except QueueServeError:
                await asyncio.sleep(0.1)


async def test_streams_go_on_after_a_fail_over_that_has_lost_writes(house, read, sentinels):
    """Some run when the master dies, some are of its last moment, of which nobody else knows."""
    await house.worker(FakeEngine(slots=16, tick=0.05), heartbeat_timeout=LONG)
    plane = await house.plane(heartbeat_timeout=LONG)
    jobs = [
        house.job(messages=({"role": "user", "content": f"{n}"},), sampling={"max_tokens": 120})
        for n in range(8)
    ]
    quiet = [replace(job, id=f"quiet-{job.id}") for job in jobs]
    expected = await asyncio.gather(*[text(plane, job) for job in quiet])
    early = [asyncio.create_task(text(plane, job)) for job in jobs[:4]]
    await house.until(running(house), equal=4)
    sentinels.replica.send_signal(signal.SIGSTOP)
    await house.redis.client_kill_filter(_type="slave")  # what follows is for nobody else
    late = [asyncio.create_task(text(plane, job)) for job in jobs[4:]]
    await house.until(running(house), equal=8)
    before = await submitted(house.redis, jobs)
    sentinels.master.kill()
    sentinels.replica.send_signal(signal.SIGCONT)
    assert await asyncio.gather(*early, *late) == expected
    after = await submitted(house.redis, jobs)
    assert after[:4] == before[:4]
    assert all(then != now for then, now in zip(before[4:], after[4:], strict=True))  # once more
    assert (await house.redis.info("replication"))["role"] == "master"
    assert await served(house, plane, read) == 40
    await wrong_addresses(sentinels.ports)


def running(house):
    async def look() -> int:
        return sum([await house.redis.hlen(key) for key in await house.redis.keys("qs:*:lease:*")])

    return look


async def submitted(redis, jobs) -> list[bytes | None]:
    """When each job was, as Redis has it."""
    return [await redis.hget(f"qs:{{m}}:job:{job.id}", "submitted") for job in jobs]


async def text(plane, job) -> str:
    """What the client of one stream reads."""
    found = ""
    async with asyncio.timeout(BOUND):
        async for events in await plane.owner.open(job):
            found += "".join(event.text for event in events if isinstance(event, Delta | Finished))
    return found


async def wrong_addresses(ports) -> None:
    async with open_redis(f"redis://127.0.0.1:{ports[0]}") as sentinel:
        with pytest.raises(RedisConfigurationError, match=r"use redis\+sentinel://"):
            await check(sentinel)
    async with open_redis(f"redis+sentinel://127.0.0.1:{ports[0]}/other/0") as unknown:
        with pytest.raises(QueueServeError, match="No master found"):
            await check(unknown)
