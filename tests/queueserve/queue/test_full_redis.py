"""A Redis at its memory limit takes nothing new, and can be emptied; no key is left for ever."""

from __future__ import annotations

import pytest

from queueserve.errors import RedisUnavailableError
from queueserve.queue.producer import Limits


@pytest.fixture
async def full(pool):
    """A pool of three workers that has jobs; `full()` lets its Redis have no more memory."""
    await pool.register("w1", "w2", "w3")
    for name in ("j1", "j2", "j3", "j4"):
        await pool.submit(name)

    async def fill():
        await pool.redis.config_set("maxmemory", "1")

    yield fill
    await pool.redis.config_set("maxmemory", "0")


async def test_a_full_redis_refuses_new_jobs_and_workers_with_a_clear_error(pool, full):
    await full()
    with pytest.raises(RedisUnavailableError, match="Redis is full"):
        await pool.submit("new")
    with pytest.raises(RedisUnavailableError, match="Redis is full"):
        await pool.register("new")
    assert await pool.queued() == ["j4"]
    assert not await pool.redis.exists(pool.keys.worker("new"))


async def test_a_full_redis_can_be_emptied(pool, full):
    await full()
    assert await pool.finish("w1", "j1", result=b"{}", cost=5) == "accepted"
    assert await pool.worker_of("j4") == "w1"
    assert await pool.cancel("j4") == "running"
    assert (await pool.beat("w1", rate=10)).leases["j4"].cancelled
    assert await pool.finish("w1", "j4", outcome="cancelled") == "accepted"
    assert await pool.cancel("unknown") == "cancelled"
    await pool.reap(dead="w2")
    assert await pool.cancel("j2") == "cancelled"
    assert await pool.drain("w3", leave=True) == 1
    await pool.live(200)
    assert await pool.states("j1", "j2", "j3", "j4") == [
        "done",
        "cancelled",
        "cancelled",
        "cancelled",
    ]


async def test_a_redis_that_has_room_again_takes_jobs_again(pool, full):
    await full()
    with pytest.raises(RedisUnavailableError):
        await pool.submit("new")
    await pool.redis.config_set("maxmemory", "0")
    assert (await pool.submit("new")).new


async def lasting(pool):
    """The keys that have no TTL."""
    keys = [key.decode() for key in await pool.redis.keys()]
    return {key for key in keys if await pool.redis.ttl(key) == -1}


async def test_every_key_has_a_ttl_once_the_reaper_has_looked(pool):
    await pool.register("w1", "w2", slots=2)
    for n in range(6):
        await pool.submit(f"j{n}", "a")
    sets = {pool.keys.alive, pool.keys.apis, pool.keys.due, pool.keys.queue}
    assert await lasting(pool) == sets
    await pool.reap()
    assert await lasting(pool) == set()
    renewed = sets | {pool.keys.waiting, pool.keys.fair}
    assert {round(await pool.redis.ttl(name) / 86400) for name in renewed} == {7}


async def leave_traces(pool):
    """Something of everything that can happen."""
    pool.limits = Limits(max_queue=8)
    await pool.register("w1", "w2", "w3", slots=2)
    for n in range(12):
        api = "ab"[n % 2]
        await pool.submit(
            f"j{n}", api, tenant=f"t{n % 4}", priority=n, grace=30 if n % 3 == 0 else 0
        )
    await pool.finish("w1", "j0", cost=10, result=b"{}")
    await pool.reap(dead="w2")
    await pool.resume("j1", await pool.epoch("j1"), "b")
    await pool.cancel("j2", "a")
    await pool.cancel("j3", "b")
    await pool.cancel("j11", "")
    await pool.cancel("unknown", "a")
    await pool.drain("w3", leave=True)
    await pool.submit("j5", "a", tenant="t1", priority=5, grace=0)
    await pool.beat("w1", rate=10)


async def test_when_all_is_over_no_key_is_left_without_ttl(pool):
    await leave_traces(pool)
    await pool.live(700)
    assert await lasting(pool) == set()
    ended = {"done", "failed", "cancelled", "expired"}
    assert {await pool.state(f"j{n}") for n in range(12)} <= ended


async def test_when_all_is_over_only_results_and_the_pool_s_memory_are_left(pool):
    await leave_traces(pool)
    await pool.live(700)
    jobs = {pool.keys.job(f"j{n}") for n in range(12)} | {pool.keys.job("unknown")}
    left = {key.decode() for key in await pool.redis.keys()}
    assert left == jobs | {pool.keys.state, pool.keys.fair}
