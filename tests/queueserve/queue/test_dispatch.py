"""The shortest queue: the next job goes to the lowest (running + 1) / (slots * speed)."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest


async def load(pool, worker, jobs):
    """Give `worker` some jobs while no other worker may take one."""
    others = [w.decode() for w in await pool.redis.zrange(pool.keys.free, 0, -1)]
    for other in set(others) - {worker}:
        await pool.drain(other)
    for n in range(jobs):
        assert (await pool.submit(f"{worker}-{n}")).worker == worker
    for other in set(others) - {worker}:
        await pool.redis.hset(pool.keys.worker(other), "state", "ready")
        await pool.beat(other)


async def shown_load(pool, worker):
    return int(await pool.redis.zscore(pool.keys.free, worker) * 65536) / 65536


async def test_the_next_job_goes_to_the_lowest_load(pool):
    await pool.register("w1", slots=4)
    await pool.register("w2", slots=4)
    await pool.register("w3", slots=8)
    await load(pool, "w1", 3)  # (3 + 1) / 4 = 1
    await load(pool, "w2", 1)  # (1 + 1) / 4 = 0.5
    await load(pool, "w3", 2)  # (2 + 1) / 8 = 0.375
    assert [await shown_load(pool, w) for w in ("w1", "w2", "w3")] == [1.0, 0.5, 0.375]
    placed = [(await pool.submit(f"j{n}")).worker for n in range(8)]
    # w3 to 4/8; w2 and w3 tie, w2 waits longer; w3 to 5/8, 6/8; w2 and w3 …
    assert placed == ["w3", "w2", "w3", "w3", "w2", "w3", "w3", "w1"]


async def test_each_job_goes_where_the_formula_says(pool):
    workers = {"w1": (3, "0.5"), "w2": (2, "1"), "w3": (5, "0.3"), "w4": (1, "1")}
    for worker, (slots, speed) in workers.items():
        await pool.register(worker, slots=slots, speed=float(speed))
    running = Counter()
    while running.total() < 11:
        loads = {
            worker: (running[worker] + 1) / (slots * Fraction(speed))
            for worker, (slots, speed) in workers.items()
            if running[worker] < slots
        }
        standing = await pool.submit(f"j{running.total()}")
        assert loads[standing.worker] == min(loads.values())
        running[standing.worker] += 1
    assert (await pool.submit("one-more")).state == "queued"


async def test_idle_workers_take_turns(pool):
    await pool.register("w1", "w2", "w3")
    placed = []
    for n in range(300):
        placed.append((await pool.submit(f"j{n}")).worker)
        assert await pool.finish(placed[-1], f"j{n}") == "accepted"
    assert placed == ["w1", "w2", "w3"] * 100


async def test_equal_loads_take_turns_whoever_finishes_first(pool):
    await pool.register("w1", "w2", "w3", slots=2)
    for n in range(3):
        await pool.submit(f"j{n}")
    await pool.finish("w3", "j2")
    await pool.finish("w1", "j0")
    # w1 was dispatched to before w3, so it is its turn, although it finished later.
    assert [(await pool.submit(f"k{n}")).worker for n in range(3)] == ["w1", "w3", "w2"]


@pytest.mark.parametrize("speed", [0.1, 0.3, 0.7, 0.9])
async def test_loads_that_differ_by_rounding_only_are_equal(pool, speed):
    # In floating point, 3 / (3 * 0.1) is a little below 1 / (1 * 0.1).
    await pool.register("wide", slots=3, speed=speed)
    await load(pool, "wide", 2)
    await pool.register("narrow", slots=1, speed=speed)
    assert (await pool.submit("j")).worker == "narrow"  # never dispatched to, so it comes first


async def test_a_faster_worker_gets_more(pool):
    await pool.register("fast", slots=4, speed=1.0)
    await pool.register("slow", slots=4, speed=0.5)
    placed = Counter([(await pool.submit(f"j{n}")).worker for n in range(6)])
    assert placed == {"fast": 4, "slow": 2}


async def test_a_very_slow_worker_still_takes_jobs(pool):
    await pool.register("w", slots=1, speed=0.0001)
    assert (await pool.submit("j")).worker == "w"


async def test_without_a_free_slot_jobs_wait_centrally_and_go_out_in_order(pool):
    await pool.register("w1", "w2")
    for n in range(5):
        await pool.submit(f"j{n}")
    assert await pool.queued() == ["j2", "j3", "j4"]
    assert not await pool.redis.exists(pool.keys.free)
    await pool.finish("w2", "j1")
    assert await pool.worker_of("j2") == "w2"
    await pool.finish("w1", "j0")
    assert await pool.worker_of("j3") == "w1"
    assert await pool.queued() == ["j4"]


async def test_a_new_worker_takes_at_once_what_waits(pool):
    for n in range(3):
        await pool.submit(f"j{n}")
    await pool.register("w", slots=2)
    assert await pool.leases("w") == {"j0", "j1"}
    assert await pool.hints("w") == [f"{pool.time} j0", f"{pool.time + 1} j1"]


async def test_a_worker_that_has_expired_gets_nothing(pool):
    await pool.register("w")
    await pool.wait(15)
    assert (await pool.submit("j")).state == "queued"
    await pool.beat("w")
    assert await pool.worker_of("j") == "w"


async def test_a_worker_whose_registration_is_gone_gets_nothing(pool):
    await pool.register("w")
    await pool.redis.delete(pool.keys.worker("w"))
    assert (await pool.submit("j")).state == "queued"
    assert not await pool.redis.exists(pool.keys.worker("w"))
    assert (await pool.beat("w")).verdict == "register"
    await pool.register("w")
    assert await pool.worker_of("j") == "w"


async def test_a_finish_does_not_bring_an_expired_worker_back(pool):
    await pool.register("w")
    await pool.submit("j")
    await pool.submit("k")
    await pool.wait(15)
    assert await pool.finish("w", "j") == "accepted"
    assert await pool.state("k") == "queued"


async def test_a_draining_worker_gets_nothing(pool):
    await pool.register("w1", "w2", slots=2)
    await pool.submit("j1")
    await pool.drain("w1")
    assert [(await pool.submit(f"k{n}")).worker for n in range(3)] == ["w2", "w2", ""]
    await pool.beat("w1")
    await pool.finish("w1", "j1")
    assert await pool.leases("w1") == set()
    assert await pool.queued() == ["k2"]


async def test_loads_keep_their_digits_after_very_many_turns(pool):
    await pool.redis.hset(pool.keys.state, "turn", 2**30 - 3)
    await pool.register("w1", "w2")
    placed = []
    for n in range(6):
        placed.append((await pool.submit(f"j{n}")).worker)
        await pool.finish(placed[-1], f"j{n}")
    assert placed[:2] == ["w1", "w2"]
    assert await shown_load(pool, "w1") == await shown_load(pool, "w2") == 1.0


async def test_a_light_job_does_not_wait_for_a_slot(pool):
    await pool.register("w1", slots=2)
    await pool.register("w2", slots=1)
    for n in range(3):
        await pool.submit(f"j{n}")
    assert (await pool.submit("heavy")).state == "queued"
    light = await pool.submit("light", kind="tokenize")
    assert (light.state, light.worker) == ("running", "w2")  # it holds the fewest
    assert (await pool.submit("after")).state == "queued"
    assert await pool.finish("w2", "light") == "accepted"
    assert await pool.state("heavy") == "queued"  # a light job frees no slot, as it took none
    assert await pool.finish("w1", "j0") == "accepted"
    assert await pool.state("heavy") == "running"


async def test_light_jobs_beyond_the_slots_are_bounded(pool):
    await pool.register("w1", slots=1)
    await pool.submit("heavy")
    placed = [await pool.submit(f"l{n}", kind="tokenize") for n in range(20)]
    assert [standing.state for standing in placed] == ["running"] * 16 + ["queued"] * 4
    await pool.finish("w1", "l0")
    assert await pool.state("l16") == "running"


async def test_a_light_job_keeps_away_from_a_worker_that_drains(pool):
    await pool.register("w1", slots=1)
    await pool.submit("heavy")
    await pool.drain("w1")
    assert (await pool.submit("light", kind="tokenize")).state == "queued"
