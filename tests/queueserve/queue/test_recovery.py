"""The reaper as it runs in every process, on the real clock: it sleeps until something is due."""

from __future__ import annotations

import asyncio

import pytest

from queueserve.errors import RedisUnavailableError
from queueserve.protocol import ModelCard
from queueserve.queue.connection import open_redis
from queueserve.queue.directory import announce
from queueserve.queue.embedded import EmbeddedRedis
from queueserve.queue.functions import Functions
from queueserve.queue.recovery import Reaper, declare_dead, jittered


async def test_the_reaper_sleeps_until_the_next_thing_is_due(pool):
    assert (await pool.reap()).wait == 5
    await pool.submit("j", queue_timeout=2)
    assert (await pool.reap()).wait == 2
    await pool.wait(1.75)
    assert (await pool.reap()).wait == 0.25


async def test_a_wait_is_never_cut_short_and_never_much_longer():
    waits = [jittered(10) for _ in range(100)]
    assert min(waits) >= 10
    assert max(waits) <= 10.5
    assert jittered(0) > 0


async def test_the_running_reaper_ends_what_is_due(pool, functions):
    await functions.call("freeze", pool.root, "")
    async with pool.listening_as() as ear:
        await pool.submit("j", queue_timeout=0.05)
        running = asyncio.create_task(pool.reaper.run("m"))
        (event,) = await ear.next_events()
    running.cancel()
    assert event[:4] == ["failed", "j", 0, "no_worker"]


async def test_a_reaper_that_finds_no_redis_tries_again(tmp_path, keys, free_port):
    with EmbeddedRedis(tmp_path, port=free_port()) as server:
        redis = open_redis(server.url)
        server.kill()
        reaper = Reaper(Functions(redis), keys, heartbeat_timeout=15)
        with pytest.raises(RedisUnavailableError):
            await reaper.reap("m")
        running = asyncio.create_task(reaper.run("m"))
        await asyncio.to_thread(server.start)
        async with asyncio.timeout(20):
            while not await redis.exists(keys.pool("m").state):  # noqa: ASYNC110 - no event for it
                await asyncio.sleep(0.05)
        running.cancel()
        await redis.aclose()


async def test_the_workers_of_a_process_that_ended_are_reaped_at_once(pool, redis, keys, functions):
    card = ModelCard(name="m", pool="m", context_length=100, engine="fake")
    await announce(redis, keys, [card])
    await pool.register("host-12-aaa", "host-123-bbb", "host-12-ccc", "host-12-7-ddd")
    for n in range(4):
        await pool.submit(f"j{n}")
    await functions.call("freeze", pool.root, "")
    for worker in ("host-12-aaa", "host-123-bbb", "host-12-ccc", "host-12-7-ddd"):
        await pool.beat(worker)  # on the real clock, which is the one of the library without tests
    await pool.reap(api="a")
    assert await declare_dead(redis, keys, "host-12", heartbeat_timeout=15) == 2
    left = await redis.zrange(pool.keys.alive, 0, -1)
    assert set(left) == {b"host-123-bbb", b"host-12-7-ddd"}
    assert (await pool.states("j0", "j1", "j2", "j3")).count("running") == 2
