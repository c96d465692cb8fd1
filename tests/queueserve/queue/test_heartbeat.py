"""register, heartbeat, drain: who may take jobs, what a worker holds, and a Redis that was away."""

from __future__ import annotations

import pytest

from queueserve.queue.consumer import Lease


async def expiry(pool, worker):
    return await pool.redis.zscore(pool.keys.alive, worker) - pool.time


async def test_a_registration_is_there_for_people_and_lives_as_long_as_its_heartbeats(pool):
    await pool.consumer("w").register(slots=2, speed=1.0, about={"engine": "fake", "host": "h"})
    shown = await pool.redis.hgetall(pool.keys.worker("w"))
    assert shown == {
        b"slots": b"2",
        b"speed": b"1.0",
        b"turn": b"0",
        b"state": b"ready",
        b"engine": b"fake",
        b"host": b"h",
    }
    assert 14_000 < await pool.redis.pttl(pool.keys.worker("w")) <= 15_000
    assert await expiry(pool, "w") == 15_000_000


async def test_a_heartbeat_renews_a_registration(pool):
    await pool.register("w")
    await pool.redis.pexpire(pool.keys.worker("w"), 1000)
    await pool.wait(10)
    beat = await pool.beat("w")
    assert (beat.verdict, beat.leases) == ("ok", {})
    assert await expiry(pool, "w") == 15_000_000
    assert 14_000 < await pool.redis.pttl(pool.keys.worker("w")) <= 15_000
    steps, beaten = await pool.redis.hmget(pool.keys.worker("w"), "steps", "beat")
    assert (steps, int(beaten)) == (b"1", pool.time // 1_000_000)


async def test_a_heartbeat_renews_what_the_worker_holds(pool):
    await pool.register("w", slots=2)
    await pool.submit("j")
    held = (pool.keys.lease("w"), pool.keys.inbox("w"))
    for key in held:
        await pool.redis.expire(key, 10)
    await pool.submit("k")  # they are there, and keep their time
    assert [await pool.redis.ttl(key) <= 10 for key in held] == [True, True]
    await pool.beat("w")
    assert [await pool.redis.ttl(key) > 86_000 for key in held] == [True, True]


async def test_registering_twice_is_registering_once(pool):
    await pool.register("w", slots=2)
    await pool.submit("j")
    await pool.register("w", slots=2)
    await pool.submit("k")
    await pool.submit("l")
    assert await pool.leases("w") == {"j", "k"}
    assert await pool.queued() == ["l"]


async def test_a_heartbeat_tells_what_the_worker_holds_and_up_to_when(pool):
    await pool.register("w", slots=2)
    await pool.submit("j")
    await pool.submit("k")
    await pool.cancel("k")
    beat = await pool.beat("w")
    assert beat.snapshot == pool.time + 1
    assert beat.leases == {
        "j": Lease(pool.time, cancelled=False),
        "k": Lease(pool.time + 1, cancelled=True),
    }


async def test_what_was_taken_away_is_absent_and_covered_by_the_snapshot(pool):
    await pool.register("w1")
    await pool.submit("j")
    epoch = await pool.epoch("j")
    await pool.live(5, workers="w1", apis="a")
    await pool.drain("w1", leave=True)
    await pool.register("w1")
    beat = await pool.beat("w1")
    assert "j" not in beat.leases
    assert beat.snapshot > epoch


async def test_a_reaped_worker_is_told_that_it_is_gone(pool):
    await pool.register("w")
    await pool.reap(dead="w")
    beat = await pool.beat("w")
    assert (beat.verdict, beat.leases) == ("gone", {})
    assert not await pool.redis.exists(pool.keys.alive, pool.keys.worker("w"))


async def test_an_unknown_worker_is_told_that_it_is_gone(pool):
    assert (await pool.beat("w")).verdict == "gone"


async def test_a_worker_that_is_late_but_was_not_reaped_keeps_its_jobs(pool):
    await pool.register("w")
    await pool.submit("j")
    await pool.wait(15)
    assert set((await pool.beat("w")).leases) == {"j"}
    await pool.reap()
    assert await pool.state("j") == "running"


async def test_a_worker_whose_registration_key_has_expired_registers_again_and_keeps_its_jobs(pool):
    await pool.register("w", slots=2)
    await pool.submit("j")
    await pool.redis.delete(pool.keys.worker("w"))
    beat = await pool.beat("w")
    assert (beat.verdict, set(beat.leases)) == ("register", {"j"})
    await pool.register("w", slots=2)
    await pool.submit("k")
    await pool.submit("l")
    assert await pool.leases("w") == {"j", "k"}


async def test_a_job_deleted_by_hand_does_not_hold_its_slot_for_ever(pool):
    await pool.register("w")
    await pool.submit("j")
    await pool.submit("k")
    await pool.redis.delete(pool.keys.job("j"))
    assert set((await pool.beat("w")).leases) == {"k"}
    assert await pool.worker_of("k") == "w"


# Drain


async def test_a_draining_worker_finishes_what_it_runs(pool):
    await pool.register("w", slots=2)
    await pool.submit("j")
    await pool.submit("k")
    assert await pool.drain("w") == 2
    await pool.submit("l")
    await pool.finish("w", "j")
    assert await pool.beat("w")
    assert await pool.finish("w", "k") == "accepted"
    assert await pool.state("l") == "queued"
    assert await pool.drain("w") == 0


async def test_a_worker_that_leaves_gives_its_jobs_back_and_is_gone(pool):
    await pool.register("w")
    await pool.submit("j")
    await pool.submit("cancelled")
    async with pool.listening_as() as ear:
        assert await pool.drain("w", leave=True) == 1
        assert await ear.events() == [["orphaned", "j", await pool.epoch("j")]]
    assert await pool.drain("w", leave=True) == 0
    assert not await pool.redis.exists(
        pool.keys.worker("w"), pool.keys.lease("w"), pool.keys.inbox("w"), pool.keys.alive
    )
    assert (await pool.beat("w")).verdict == "gone"


async def test_draining_an_unknown_worker_leaves_nothing_behind(pool):
    assert await pool.drain("w") == 0
    assert await pool.redis.keys() == []


# Speed


async def shown_speed(pool, worker):
    return float(await pool.redis.hget(pool.keys.worker(worker), "speed"))


@pytest.mark.parametrize(
    "rate, speed", [(100, 1.0), (81, 1.0), (79, 0.8), (51, 0.5), (26, 0.3), (4, 0.1), (0.01, 0.1)]
)
async def test_speed_is_relative_to_the_best_worker(pool, rate, speed):
    await pool.register("best", "w")
    await pool.beat("best", rate=100)
    await pool.beat("w", rate=rate)
    assert await shown_speed(pool, "w") == speed


async def test_a_rate_of_nought_leaves_the_speed_alone(pool):
    await pool.register("best")
    await pool.beat("best", rate=100)
    await pool.register("w", speed=0.5)
    await pool.beat("w", rate=0)
    assert await shown_speed(pool, "w") == 0.5


async def test_a_slow_worker_is_slow_also_among_very_many(pool):
    slow = [f"w{n}" for n in range(300)]
    await pool.register("fast", *slow)
    await pool.beat("fast", rate=100)
    for worker in slow:
        await pool.beat(worker, rate=20)
    assert await shown_speed(pool, slow[-1]) == 0.2


async def test_the_best_speed_is_forgotten_when_its_worker_is_gone(pool):
    await pool.register("fast", "w")
    await pool.beat("fast", rate=100)
    await pool.drain("fast", leave=True)
    for _ in range(300):
        await pool.wait(3)
        await pool.beat("w", rate=20)
    assert await shown_speed(pool, "w") == 1.0


async def test_speed_decides_about_the_next_job(pool):
    await pool.register("w1", "w2", slots=4)
    await pool.beat("w2", rate=100)
    await pool.beat("w1", rate=50)
    placed = [(await pool.submit(f"j{n}")).worker for n in range(6)]
    assert sorted(placed) == ["w1", "w1", "w2", "w2", "w2", "w2"]


# A Redis that was away, or whose clock was set


async def test_after_an_outage_leases_are_extended_once_and_nothing_is_charged(pool):
    await pool.register("w1", "w2")
    await pool.submit("j1", "a", timeout=7200)
    await pool.submit("j2", "a", timeout=7200)
    await pool.live(6, workers="w1 w2", apis="a")
    await pool.wait(3600)
    assert not (await pool.reap(api="a")).expired
    assert await pool.states("j1", "j2") == ["running", "running"]
    assert (await expiry(pool, "w1"), await expiry(pool, "w2")) == (15_000_000, 15_000_000)
    await pool.live(14, workers="w1", apis="a")
    assert await pool.states("j1", "j2") == ["running", "running"]
    await pool.live(1, workers="w1", apis="a")  # w2 had its second chance
    assert await pool.states("j1", "j2") == ["running", "orphaned"]
    assert await pool.field("j1", "attempts") == "1"


@pytest.mark.parametrize("first", ["heartbeat", "register", "reap"])
async def test_whoever_comes_first_after_an_outage_the_others_are_spared(pool, first):
    await pool.register("w1", "w2", "w3")
    for n in range(3):
        await pool.submit(f"j{n}")
    await pool.wait(60)
    if first == "heartbeat":
        await pool.beat("w1")
    elif first == "register":
        await pool.register("w4")
    await pool.reap()
    assert await pool.states("j0", "j1", "j2") == ["running", "running", "running"]


async def test_a_redis_that_was_there_all_the_time_spares_nobody(pool):
    await pool.register("w1", "w2")
    await pool.submit("j1")
    await pool.submit("j2")
    await pool.live(15, workers="w1", apis="a")
    assert await pool.states("j1", "j2") == ["running", "orphaned"]


async def test_deadlines_go_on_during_an_outage(pool):
    await pool.register("w")
    await pool.submit("running", timeout=600)
    await pool.submit("j", queue_timeout=60)
    await pool.wait(120)
    await pool.reap(api="a")
    assert await pool.states("running", "j") == ["running", "expired"]


async def test_a_clock_that_is_set_back_does_not_keep_the_dead_alive(pool):
    await pool.register("w1", "w2")
    await pool.submit("j1", "a")
    await pool.submit("j2", "b")
    await pool.wait(-3600)
    await pool.live(3, workers="w1", apis="a")
    await pool.live(14, workers="w1", apis="a")
    assert await pool.states("j1", "j2") == ["running", "running"]
    await pool.live(1, workers="w1", apis="a")
    assert await pool.states("j1", "j2") == ["running", "cancelled"]
