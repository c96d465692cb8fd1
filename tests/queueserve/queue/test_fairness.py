"""The order of the queue: strict classes, fair between tenants, first in first out within one."""

from __future__ import annotations

import pytest

from queueserve.errors import QueueFullError
from queueserve.queue.producer import Limits

SPAN = 2**48  # of the ranks of one class


async def submit_many(pool, jobs, *, tenant, cost=100, priority=8, prefix="j"):
    """Submit many jobs in a few round trips: `prefix`0, `prefix`1, …"""
    async with pool.redis.pipeline(transaction=False) as pipe:
        for n in range(jobs):
            pipe.execute_command(
                *(["FCALL", pool.functions.name("submit"), 1, pool.root]),
                *(f"{prefix}{n}", "a", 15_000_000, 1, b"{}", "digest", priority),
                *(tenant if isinstance(tenant, str) else tenant(n), 1, cost),
                *(60_000_000, 600_000_000, 0, 3, 100_000, 100_000, "", 0),
            )
        return await pipe.execute()


async def submit_weighted(pool, name, *, tenant, cost, weight):
    await pool.functions.call(
        *("submit", pool.root, name, "a", 15_000_000, 1, b"{}", "digest", 8, tenant, weight, cost),
        *(60_000_000, 600_000_000, 0, 3, 10_000, 10_000, "", 0),
    )


async def served(pool, worker="w"):
    """Finish what runs, one job after the other; returns the order in which jobs were run."""
    order = []
    while leases := await pool.leases(worker):
        (job,) = leases
        order.append(job)
        await pool.finish(worker, job)
    return order


async def test_within_a_tenant_first_in_is_first_out(pool):
    names = ["z", "a", "m", "0", "k"]
    for name in names:
        await pool.submit(name, cost=100)
    assert await pool.queued() == names
    await pool.register("w")
    assert await served(pool) == names


async def test_a_tenant_with_one_request_passes_one_with_ten_thousand(pool):
    await pool.register("w")
    await pool.outlast("w")
    pool.limits = Limits(max_queue=100_000)
    await submit_many(pool, 10_001, tenant="greedy", cost=1)
    assert await pool.redis.zcard(pool.keys.queue) == 10_000
    assert (await pool.submit("zz", tenant="modest", cost=1)).position == 1
    await pool.finish("w", "j0")
    assert await pool.worker_of("zz") == "w"


async def test_tenants_share_by_cost(pool):
    await pool.register("w")
    await pool.submit("first", tenant="other", cost=100)
    for n in range(6):
        await pool.submit(f"big{n}", tenant="big", cost=300)
        await pool.submit(f"small{n}", tenant="small", cost=100)
    order = await served(pool)
    # While a big job runs its 300, three small ones run their 100 each.
    assert set(order[1:3]) == {"big0", "small0"}
    assert order[3:5] == ["small1", "small2"]
    assert set(order[5:7]) == {"big1", "small3"}
    assert order[7:9] == ["small4", "small5"]
    assert order[9:] == ["big2", "big3", "big4", "big5"]


async def test_a_tenant_of_double_weight_gets_double(pool):
    await pool.register("w")
    await pool.submit("first", tenant="other", cost=100)
    for n in range(12):
        await submit_weighted(pool, f"heavy{n}", tenant="heavy", cost=100, weight=2)
        await submit_weighted(pool, f"light{n}", tenant="light", cost=100, weight=1)
    order = (await served(pool))[1:13]
    assert [name[:5] for name in order].count("heavy") == 8
    assert [name[:5] for name in order].count("light") == 4


async def test_classes_are_strict(pool):
    for priority in (15, 8, 0, 1, 14, 3):
        await pool.submit(f"p{priority}", tenant=f"t{priority}", cost=1_000_000, priority=priority)
    assert await pool.queued() == ["p0", "p1", "p3", "p8", "p14", "p15"]
    await pool.submit("late", tenant="t0", cost=1, priority=0)
    assert (await pool.queued())[:3] == ["p0", "late", "p1"]


async def test_position_and_depth_are_exact(pool):
    for n in range(30):
        await pool.submit(f"j{n}", tenant=f"t{n % 3}", cost=100 + n)
    for position, name in enumerate(await pool.queued(), start=1):
        tenant, cost = f"t{int(name[1:]) % 3}", 100 + int(name[1:])
        assert (await pool.submit(name, tenant=tenant, cost=cost)).position == position
    pool.limits = Limits(max_queue=30)
    with pytest.raises(QueueFullError, match="30 jobs wait"):
        await pool.submit("more")
    await pool.cancel((await pool.queued())[10])
    assert await pool.redis.zcard(pool.keys.queue) == 29


async def test_newcomers_are_not_punished_for_traffic_in_another_class(pool):
    await pool.register("w")
    await pool.submit("running", tenant="x", priority=8, cost=100)
    await pool.submit("low1", tenant="t1", priority=9, cost=100)
    await pool.submit("low2", tenant="t1", priority=9, cost=100)
    for n in range(50):
        await pool.submit(f"high{n}", tenant="x", priority=8, cost=10_000)
        await pool.finish("w", (await pool.leases("w")).pop())
    await pool.submit("new", tenant="t2", priority=9, cost=100)
    assert await pool.queued() == ["low1", "new", "low2"]


async def test_a_job_that_waits_is_not_passed_by_newcomers_for_ever(pool):
    await pool.register("w")
    await pool.submit("running", tenant="t", cost=100)
    await pool.submit("zz", tenant="patient", cost=100)
    for n in range(3):  # each from a tenant never seen before, each first in the alphabet
        await pool.submit(f"a{n}", tenant=f"new{n}", cost=100)
        await pool.finish("w", (await pool.leases("w")).pop())
    assert await pool.state("zz") != "queued"


async def test_a_tenant_that_was_idle_has_saved_nothing_up(pool):
    await pool.register("w")
    await pool.submit("first", tenant="idle", cost=100)
    for n in range(20):
        await pool.submit(f"busy{n}", tenant="busy", cost=100)
    for _ in range(10):
        await pool.finish("w", (await pool.leases("w")).pop())
    for n in range(3):
        await pool.submit(f"idle{n}", tenant="idle", cost=100)
    # The busy tenant's next waits at most for one job of the one that comes back.
    assert [name[:4] for name in (await pool.queued())[:4]] == ["idle", "busy", "idle", "busy"]


async def ranks(pool):
    pairs = await pool.redis.zrange(pool.keys.queue, 0, -1, withscores=True)
    return {name.decode(): int(rank) - 8 * SPAN for name, rank in pairs}


async def test_the_true_cost_corrects_what_is_submitted_later(pool):
    await pool.register("w")
    await pool.submit("t0", tenant="t", cost=100)
    await pool.submit("t1", tenant="t", cost=100)
    before = await ranks(pool)
    await pool.register("w2")  # takes t1
    await pool.submit("t2", tenant="t", cost=100)
    await pool.submit("t3", tenant="t", cost=100)
    waiting = await ranks(pool)
    assert waiting["t3"] - waiting["t2"] == 100
    await pool.drain("w")
    await pool.finish("w", "t0", cost=150)
    assert await ranks(pool) == waiting
    assert before["t1"] + 100 == waiting["t2"]
    await pool.submit("t4", tenant="t", cost=100)
    assert (await ranks(pool))["t4"] - waiting["t3"] == 150


async def test_a_job_that_was_cheaper_than_thought_never_lets_its_tenant_jump_the_queue(pool):
    await pool.register("w")
    await pool.submit("t0", tenant="t", cost=1_000_000)
    await pool.submit("t1", tenant="t", cost=10)
    await pool.submit("t2", tenant="t", cost=10)
    await pool.drain("w")
    await pool.finish("w", "t0", cost=1)
    await pool.submit("t3", tenant="t", cost=10)
    assert await pool.queued() == ["t1", "t2", "t3"]


async def test_thousands_of_one_off_tenants_leave_nothing_behind(pool):
    await pool.register("w", slots=100)
    await pool.outlast("w")
    for start in range(0, 2_000, 200):
        await submit_many(
            pool, 200, tenant=lambda n, s=start: f"t{s + n}", cost=500, prefix=f"{start}-"
        )
        while await pool.leases("w"):
            await pool.finish_all("w", cost=600)
    assert not await pool.redis.exists(pool.keys.fair)


async def test_one_off_tenants_are_forgotten_while_a_backlog_stands(pool):
    await pool.register("w")
    await pool.outlast("w")
    await submit_many(pool, 600, tenant="greedy", prefix="greedy")
    for n in range(500):
        await submit_many(pool, 1, tenant=f"t{n}", prefix=f"once{n}-")
        await pool.finish_all("w")  # the next one of `greedy` runs
        await pool.finish_all("w")  # the newcomer runs
    assert await pool.redis.zcard(pool.keys.queue) > 90
    assert await pool.redis.hlen(pool.keys.fair) < 50  # a thousand without pruning


async def test_an_idle_pool_remembers_no_debts(pool):
    await pool.register("w")
    for n in range(5):
        await pool.submit(f"j{n}", tenant="t", cost=1_000_000)
    await served(pool)
    await pool.submit("running", tenant="x", cost=10)
    await pool.submit("old", tenant="t", cost=10)
    await pool.submit("x2", tenant="x", cost=10)
    assert await pool.queued() == ["old", "x2"]


async def test_large_ranks_keep_all_their_digits(pool):
    await pool.redis.hset(pool.keys.state, "V:15", SPAN - 1_000_001)
    await pool.submit("j1", priority=15, cost=3)
    await pool.submit("j2", priority=15, cost=3)
    pairs = await pool.redis.zrange(pool.keys.queue, 0, -1, withscores=True)
    assert [(name, int(rank)) for name, rank in pairs] == [
        (b"j1", 15 * SPAN + SPAN - 1_000_001),
        (b"j2", 15 * SPAN + SPAN - 1_000_001 + 3),
    ]
    assert await pool.field("j2", "rank") == str(16 * SPAN - 1_000_001 + 3)
    await pool.register("w")
    await pool.reap(dead="w")
    await pool.resume("j1", await pool.epoch("j1"))
    assert await pool.queued() == ["j1", "j2"]


async def test_an_absurd_cost_does_not_leave_its_class(pool):
    await pool.submit("j1", priority=8, tenant="t", cost=10**15)
    await pool.submit("j2", priority=8, tenant="t", cost=10**15)
    await pool.submit("j3", priority=9, tenant="u", cost=1)
    assert await pool.queued() == ["j1", "j2", "j3"]


async def test_an_interrupted_job_goes_on_at_its_rank(pool):
    await pool.register("w", slots=3)
    for n in range(6):
        await pool.submit(f"j{n}", cost=100)
    await pool.reap(dead="w")
    for name in ("j2", "j0", "j1"):
        await pool.resume(name, await pool.epoch(name))
    assert await pool.queued() == ["j0", "j1", "j2", "j3", "j4", "j5"]
    await pool.submit("new", tenant="u", cost=100)
    assert (await pool.queued())[:4] == ["j0", "j1", "j2", "new"]
