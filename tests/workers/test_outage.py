"""Redis dies, hangs, forgets: requests go on, or end with a clear error, and everything heals."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal

import pytest

from queueserve.errors import RedisUnavailableError, ServerExpiredError
from queueserve.queue.embedded import EmbeddedRedis
from queueserve.queue.tasks import end
from workers.engines.fake import FakeEngine

LEASE = 4.0  # seconds, of what must expire: longer than a busy machine stops a test
BOUND = 60.0  # seconds that any single wait may take, on however busy a machine


@pytest.fixture
def server(tmp_path, free_port):
    """A server of this test's own, which it may kill."""
    with EmbeddedRedis(tmp_path / "redis", port=free_port()) as server:
        yield server


@pytest.fixture
def redis_url(server):
    return server.url


async def restart(server) -> None:
    server.kill()
    await asyncio.to_thread(server.start)


async def undisturbed(house, read, plane):
    return (await read(await plane.owner.open(house.job(sampling={"max_tokens": 100}))))[:2]


async def test_a_stream_survives_a_redis_that_is_killed_and_comes_back(house, read, server):
    await house.worker(FakeEngine(tick=0.01))
    plane = await house.plane()
    expected = await undisturbed(house, read, plane)
    stream = await plane.owner.open(house.job(sampling={"max_tokens": 100}))
    assert (await read(stream, after=20, then=lambda: restart(server)))[:2] == expected


async def test_a_stream_survives_a_redis_that_has_forgotten_everything(house, read, redis):
    await house.worker(FakeEngine(tick=0.01))
    plane = await house.plane()
    expected = await undisturbed(house, read, plane)
    stream = await plane.owner.open(house.job(sampling={"max_tokens": 100}))

    async def forget() -> None:
        await redis.flushall()
        await redis.function_flush()

    assert (await read(stream, after=20, then=forget))[:2] == expected


async def test_a_stream_survives_a_redis_that_comes_back_empty(house, read, server, tmp_path):
    await house.worker(FakeEngine(tick=0.01))
    plane = await house.plane()
    expected = await undisturbed(house, read, plane)
    stream = await plane.owner.open(house.job(sampling={"max_tokens": 100}))

    async def lose_all() -> None:
        server.kill()
        shutil.rmtree(tmp_path / "redis" / "appendonlydir")
        await asyncio.to_thread(server.start)

    assert (await read(stream, after=20, then=lose_all))[:2] == expected


async def test_queued_requests_survive_a_restart(house, read, server):
    plane = await house.plane()
    streams = [await plane.owner.open(house.job()) for _ in range(5)]
    await house.redis.execute_command("WAITAOF", 1, 0, 0)
    await restart(server)
    await house.worker()
    answers = [await read(stream) for stream in streams]
    assert [len(tokens) for _, tokens, _ in answers] == [40] * 5


async def test_without_redis_a_request_fails_within_the_bound_and_later_ones_work(
    house, read, server
):
    await house.worker()
    plane = await house.plane()
    await read(await plane.owner.open(house.job()))
    server.kill()
    async with asyncio.timeout(5):
        with pytest.raises(RedisUnavailableError):
            await plane.owner.open(house.job())
    await asyncio.to_thread(server.start)
    await house.until(lambda: house.redis.zcard("qs:{m}:free"), equal=1)
    async with asyncio.timeout(BOUND):
        while True:
            try:
                stream = await plane.owner.open(house.job())
                break
            except RedisUnavailableError:
                await asyncio.sleep(0.05)
    assert len((await read(stream))[1]) == 40


async def to_the_end(stream) -> None:
    async with asyncio.timeout(BOUND):
        async for _ in stream:
            pass


async def ready(plane) -> int:
    return int(plane.owner.ready)


async def test_a_redis_that_hangs_longer_than_the_lease_ends_streams_and_heals(house, read, server):
    await house.worker(FakeEngine(tick=0.01), heartbeat_timeout=LEASE)
    plane = await house.plane(heartbeat_timeout=LEASE)
    before = plane.owner.api
    stream = await plane.owner.open(house.job(sampling={"max_tokens": 4000}))
    await anext(stream)
    os.kill(server.pid, signal.SIGSTOP)
    try:
        with pytest.raises(ServerExpiredError):
            await to_the_end(stream)
    finally:
        os.kill(server.pid, signal.SIGCONT)
    assert plane.owner.api != before
    await house.until(lambda: ready(plane), equal=1)
    assert len((await read(await plane.owner.open(house.job())))[1]) == 40
    await house.until(lambda: house.redis.zcard("qs:{m}:due"), equal=0)


async def test_heartbeats_do_not_wait_behind_requests(house, read, monkeypatch):
    monkeypatch.setattr("queueserve.queue.exchange.CALL_TIMEOUT", 10 * BOUND)
    await house.worker(FakeEngine(tick=0.02))
    plane = await house.plane()
    stream = await plane.owner.open(house.job(sampling={"max_tokens": 4000}))
    await anext(stream)
    requests = plane.owner._producer._functions.line
    crowd = [asyncio.create_task(requests.call("BLPOP", "nothing", 0)) for _ in range(200)]

    async def blocked() -> int:
        return (await house.redis.info("clients"))["blocked_clients"]

    async def renewed() -> float:
        return plane.owner._session._confirmed["m"]

    try:
        await house.until(blocked, equal=2)  # the worker waits for jobs, too
        for _ in range(3):  # beats, while not one of the crowd is answered
            await house.until(renewed, above=await renewed())
        assert not any(one.done() for one in crowd)
        assert not stream.ended
    finally:
        await end(set(crowd))
    await stream.aclose()


async def test_a_worker_waits_for_a_redis_that_is_not_up_yet(house, read, server):
    server.stop()
    joining = asyncio.create_task(house.worker())
    await asyncio.sleep(0.3)
    await asyncio.to_thread(server.start)
    await joining
    plane = await house.plane()
    assert len((await read(await plane.owner.open(house.job())))[1]) == 40
