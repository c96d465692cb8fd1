"""cancel: wherever the job is; sticky, so that no lost message is a lost cancel; grace times."""

from __future__ import annotations

import pytest

from queueserve.queue.exchange import Line


async def test_a_queued_job_is_gone_at_once(pool):
    await pool.submit("j")
    await pool.submit("k")
    assert await pool.cancel("j") == "cancelled"
    assert await pool.state("j") == "cancelled"
    assert await pool.queued() == ["k"]
    assert await pool.redis.hgetall(pool.keys.waiting) == {b"default": b"1"}
    assert await pool.redis.zrange(pool.keys.due, 0, -1) == [b"k"]


async def test_a_running_job_keeps_its_slot_until_its_worker_has_stopped_it(pool):
    await pool.register("w")
    await pool.submit("j")
    await pool.submit("k")
    async with pool.listening(pool.keys.control("w")) as ear:
        assert await pool.cancel("j") == "running"
        assert await ear.heard() == [f"cancel {pool.time} j".encode()]
    assert await pool.states("j", "k") == ["running", "queued"]
    assert await pool.finish("w", "j", outcome="cancelled") == "accepted"
    assert await pool.states("j", "k") == ["cancelled", "running"]


async def test_a_cancel_is_repeated_by_every_heartbeat(pool):
    await pool.register("w", slots=2)
    await pool.submit("j")
    await pool.submit("k")
    await pool.cancel("j")  # nobody listens
    for _ in range(3):
        beat = await pool.beat("w")
        assert {job: lease.cancelled for job, lease in beat.leases.items()} == {
            "j": True,
            "k": False,
        }


async def test_a_cancel_before_the_worker_has_claimed_the_job_is_seen_by_it(pool):
    await pool.register("w")
    await pool.submit("j")
    await pool.cancel("j")
    consumer = pool.consumer("w")
    (assignment,) = await consumer.fetch(await consumer.claim(Line(pool.redis)))
    assert assignment.cancelled


async def test_a_job_that_ends_by_itself_after_its_cancel_is_done(pool):
    await pool.register("w")
    await pool.submit("j")
    await pool.cancel("j")
    assert await pool.finish("w", "j") == "accepted"
    assert await pool.state("j") == "done"


async def test_an_orphan_ends_at_once(pool):
    await pool.register("w")
    await pool.submit("j")
    await pool.reap(dead="w")
    epoch = await pool.epoch("j")
    assert await pool.cancel("j") == "cancelled"
    assert not await pool.resume("j", epoch)
    assert await pool.state("j") == "cancelled"


async def test_a_cancelled_job_whose_worker_dies_is_cancelled_and_no_orphan(pool):
    await pool.register("w")
    await pool.submit("j")
    await pool.cancel("j")
    await pool.reap(dead="w")
    assert await pool.state("j") == "cancelled"


async def test_cancelling_an_unknown_job_leaves_a_tombstone(pool):
    assert await pool.cancel("j") == "cancelled"
    assert 119_000 < await pool.redis.pttl(pool.keys.job("j")) <= 120_000
    standing = await pool.submit("j")
    assert (standing.new, standing.state) == (False, "cancelled")
    assert await pool.queued() == []


async def test_cancelling_an_ended_job_changes_nothing(pool):
    await pool.register("w")
    await pool.submit("j")
    await pool.finish("w", "j", result=b'{"error":{"code":"x","message":"kept"}}')
    assert await pool.cancel("j") == "done"
    assert await pool.field("j", "result") == '{"error":{"code":"x","message":"kept"}}'


@pytest.mark.parametrize("state", ["queued", "running"])
async def test_cancelling_twice_is_cancelling_once(pool, state):
    if state == "running":
        await pool.register("w")
    await pool.submit("j")
    first = await pool.cancel("j")
    assert await pool.cancel("j") == first


async def test_only_the_reader_may_let_go_of_a_job(pool):
    await pool.submit("j", "a")
    await pool.submit("j", "b")
    assert await pool.cancel("j", "a") == "moved"
    assert await pool.state("j") == "queued"
    assert await pool.cancel("j", "b") == "cancelled"


@pytest.mark.parametrize("state", ["queued", "running", "orphaned"])
async def test_an_operator_may_cancel_any_job_and_its_reader_is_told(pool, state):
    if state != "queued":
        await pool.register("w")
    await pool.submit("j", grace=60)
    if state == "orphaned":
        await pool.reap(dead="w")
    async with pool.listening_as("a") as ear:
        await pool.cancel("j", "")
        epoch = await pool.epoch("j")
        assert await ear.events() == [
            ["failed", "j", epoch, "cancelled", "The request was cancelled.", None]
        ]
    if state == "running":
        await pool.finish("w", "j", outcome="cancelled")
    assert await pool.state("j") == "cancelled"


# Grace: a job that a retry may attach to outlives its reader for some time.


@pytest.mark.parametrize("state", ["queued", "running", "orphaned"])
async def test_a_job_with_a_grace_time_waits_for_another_reader(pool, state):
    await pool.register("w2")
    await pool.submit("running")
    if state != "queued":
        await pool.register("w")
    await pool.submit("j", grace=30)
    if state == "orphaned":
        await pool.reap(dead="w")
    assert await pool.cancel("j") == "detached"
    await pool.live(29, apis="a", workers="w w2")
    assert await pool.state("j") == state
    standing = await pool.submit("j", "b", grace=30)
    assert (standing.new, standing.state) == (False, state)
    await pool.live(6, apis="a b", workers="w w2")
    assert await pool.state("j") == state


@pytest.mark.parametrize("state", ["queued", "running", "orphaned"])
async def test_after_its_grace_time_a_job_is_cancelled(pool, state):
    await pool.register("w2")
    await pool.submit("running")
    if state != "queued":
        await pool.register("w")
    await pool.submit("j", grace=30)
    if state == "orphaned":
        await pool.reap(dead="w")
    await pool.cancel("j")
    await pool.live(31, apis="a", workers="w w2")
    if state == "running":
        assert (await pool.beat("w")).leases["j"].cancelled
        await pool.finish("w", "j", outcome="cancelled")
    assert await pool.state("j") == "cancelled"


async def test_a_second_cancel_does_not_prolong_the_grace_time(pool):
    await pool.submit("j", grace=20)
    await pool.cancel("j")
    await pool.live(15, apis="a")
    assert await pool.cancel("j") == "detached"
    await pool.live(6, apis="a")
    assert await pool.state("j") == "cancelled"


async def test_the_grace_time_goes_on_when_the_job_is_dispatched(pool):
    await pool.submit("j", grace=30, timeout=600)
    await pool.cancel("j")
    await pool.register("w")
    assert await pool.state("j") == "running"
    await pool.live(31, apis="a", workers="w")
    assert (await pool.beat("w")).leases["j"].cancelled


async def test_the_grace_time_goes_on_after_a_reader_came_and_went(pool):
    await pool.register("w")
    await pool.submit("j", grace=30, timeout=600)
    await pool.cancel("j")
    await pool.submit("j", "b", grace=30, timeout=600)
    assert await pool.cancel("j", "b") == "detached"
    await pool.live(31, apis="a b", workers="w")
    assert (await pool.beat("w")).leases["j"].cancelled


async def test_the_grace_time_goes_on_when_the_worker_dies(pool):
    await pool.register("w")
    await pool.submit("j", grace=5)
    await pool.cancel("j")
    await pool.reap(dead="w")
    assert await pool.state("j") == "orphaned"
    await pool.live(6, apis="a")
    assert await pool.state("j") == "cancelled"


async def test_a_long_grace_time_is_granted_to_an_orphan_too(pool):
    await pool.register("w")
    await pool.submit("j", grace=300, timeout=600)
    await pool.cancel("j")
    await pool.reap(dead="w")
    await pool.live(290, apis="a")
    assert await pool.state("j") == "orphaned"
    standing = await pool.submit("j", "b", grace=300, timeout=600)
    assert await pool.resume("j", standing.epoch, "b")
