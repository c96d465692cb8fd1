"""reap: what a dead worker or a dead API server leaves behind, and deadlines of what runs."""

from __future__ import annotations

import pytest

from queueserve.errors import PoisonJobError, RequestTimeoutError, WorkerLostError
from queueserve.protocol import Continuation
from queueserve.queue.exchange import Line

AT = Continuation(tokens=(1, 2), chars=3, prompt_hash="p", fingerprint="f")


async def test_an_expired_worker_parks_its_jobs_for_their_readers(pool):
    await pool.register("w")
    await pool.submit("j", "a")
    first = await pool.epoch("j")
    async with pool.listening_as("a") as ear:
        await pool.live(14, apis="a")
        assert await pool.state("j") == "running"
        await pool.live(1, apis="a")
        epoch = await pool.epoch("j")
        assert await ear.events() == [["orphaned", "j", epoch]]
    assert epoch > first
    assert await pool.state("j") == "orphaned"
    assert not await pool.redis.exists(
        pool.keys.worker("w"), pool.keys.lease("w"), pool.keys.inbox("w"), pool.keys.alive
    )


async def test_a_worker_that_is_known_to_be_dead_is_reaped_at_once(pool):
    await pool.register("w1", "w2", slots=2)
    for n in range(4):
        await pool.submit(f"j{n}")
    await pool.reap(dead="w1")
    assert await pool.states("j0", "j2") == ["orphaned", "orphaned"]
    assert await pool.states("j1", "j3") == ["running", "running"]
    epochs = [await pool.epoch("j0"), await pool.epoch("j2")]
    await pool.reap(dead="w1")  # said twice
    assert [await pool.epoch("j0"), await pool.epoch("j2")] == epochs


async def test_an_orphan_is_never_requeued_by_itself(pool):
    await pool.register("w")
    await pool.submit("j")
    await pool.reap(dead="w")
    await pool.register("w2")
    await pool.live(40, apis="a", workers="w2")
    assert await pool.state("j") == "orphaned"
    assert await pool.leases("w2") == set()


async def test_a_resumed_orphan_goes_on_elsewhere_from_where_it_stood(pool):
    await pool.register("w")
    await pool.submit("j")
    await pool.reap(dead="w")
    epoch = await pool.epoch("j")
    assert await pool.resume("j", epoch, at=AT)
    assert await pool.state("j") == "queued"
    await pool.register("w2")
    consumer = pool.consumer("w2")
    (assignment,) = await consumer.fetch(await consumer.claim(Line(pool.redis)))
    assert assignment.resume == AT
    assert assignment.epoch > epoch
    assert await pool.field("j", "attempts") == "2"


async def test_resume_is_compare_and_set(pool):
    await pool.register("w")
    await pool.submit("j", "a")
    running = await pool.epoch("j")
    assert not await pool.resume("j", running)  # it runs
    await pool.reap(dead="w")
    epoch = await pool.epoch("j")
    assert not await pool.resume("j", running)
    assert not await pool.resume("j", epoch + 1)
    assert not await pool.resume("j", epoch, "b")  # not its reader
    assert not await pool.resume("unknown", 0)
    assert await pool.state("j") == "orphaned"
    assert await pool.resume("j", epoch)


async def test_resume_said_twice_is_one_resume(pool):
    await pool.register("w")
    await pool.submit("j")
    await pool.reap(dead="w")
    epoch = await pool.epoch("j")
    assert await pool.resume("j", epoch, at=AT)
    assert await pool.resume("j", epoch)
    assert await pool.queued() == ["j"]
    assert await pool.redis.hgetall(pool.keys.waiting) == {b"default": b"1"}
    await pool.register("w2")
    running = await pool.epoch("j")
    assert await pool.resume("j", epoch)
    assert (await pool.state("j"), await pool.epoch("j")) == ("running", running)


async def test_a_resumed_job_has_a_new_queue_deadline_and_the_old_total_one(pool):
    await pool.register("w")
    await pool.submit("j", queue_timeout=20, timeout=50)
    await pool.live(30, apis="a", workers="w")
    await pool.reap(dead="w")
    await pool.resume("j", await pool.epoch("j"), wait=30)
    await pool.live(19, apis="a")
    assert await pool.state("j") == "queued"
    await pool.live(1, apis="a")
    standing = await pool.submit("j", queue_timeout=20, timeout=50)
    assert isinstance(standing.error, RequestTimeoutError)


async def test_an_orphan_without_a_reader_is_cancelled(pool):
    await pool.register("w")
    await pool.submit("j", "a")
    await pool.live(14, workers="w")
    await pool.reap(dead="w")
    assert await pool.state("j") == "orphaned"
    await pool.live(1)
    assert await pool.state("j") == "cancelled"


async def test_an_orphan_whose_reader_redis_does_not_know_is_cancelled_at_once(pool):
    await pool.register("w")
    await pool.submit("j", "a")
    await pool.redis.delete(pool.keys.apis)
    await pool.reap(dead="w")
    assert await pool.state("j") == "cancelled"


async def test_a_silent_reader_is_told_again_and_then_the_job_fails(pool):
    await pool.register("w")
    await pool.submit("j")
    async with pool.listening_as("a") as ear:
        await pool.reap(dead="w")
        orphaned = ["orphaned", "j", await pool.epoch("j")]
        for _ in range(4):
            assert await ear.events() == [orphaned]
            await pool.live(15, apis="a")
        assert [event[:4] for event in await ear.events()] == [
            ["failed", "j", orphaned[2], "worker_lost"]
        ]
    assert isinstance((await pool.submit("j")).error, WorkerLostError)


async def test_a_job_is_tried_three_times(pool):
    await pool.submit("j")
    for n in range(3):
        await pool.register(f"w{n}")
        assert await pool.worker_of("j") == f"w{n}"
        async with pool.listening_as("a") as ear:
            await pool.reap(dead=f"w{n}")
            ((kind, *_),) = await ear.events()
        assert kind == ("orphaned" if n < 2 else "failed")
        await pool.resume("j", await pool.epoch("j"))
    standing = await pool.submit("j")
    assert standing.state == "failed"
    assert isinstance(standing.error, PoisonJobError)


async def test_a_worker_that_leaves_charges_nobody_with_an_attempt(pool):
    await pool.submit("j")
    for n in range(5):
        await pool.register(f"w{n}")
        assert await pool.drain(f"w{n}", leave=True) == 1
        assert await pool.state("j") == "orphaned"
        assert await pool.field("j", "attempts") == "0"
        await pool.resume("j", await pool.epoch("j"))
    assert await pool.queued() == ["j"]


async def test_the_jobs_of_a_dead_api_server_are_cancelled(pool):
    await pool.register("w", "w2")
    await pool.submit("running", "a")
    await pool.submit("orphaned", "a")
    await pool.submit("queued", "a")
    await pool.submit("other", "b")
    await pool.reap(dead=await pool.worker_of("orphaned"))
    await pool.live(14, apis="b", workers="w w2")
    async with pool.listening(pool.keys.control("w")) as ear:
        await pool.live(2, apis="b", workers="w w2")
        assert await ear.heard() == [f"cancel {await pool.epoch('running')} running".encode()]
    assert await pool.states("queued", "orphaned") == ["cancelled", "cancelled"]
    assert (await pool.beat("w")).leases["running"].cancelled
    await pool.finish("w", "running", outcome="cancelled")
    assert await pool.states("running", "other") == ["cancelled", "running"]
    assert not await pool.redis.exists(pool.keys.by_api("a"))
    assert await pool.redis.zrange(pool.keys.apis, 0, -1) == [b"b"]


async def test_an_expired_api_server_is_told_so(pool):
    await pool.submit("j", "a")
    assert not (await pool.reap(api="a")).expired
    await pool.live(15)
    assert (await pool.reap(api="a")).expired
    assert (await pool.reap(api="never seen")).expired


async def test_a_job_with_a_grace_time_outlives_its_api_server(pool):
    await pool.register("w")
    await pool.submit("j", "a", grace=30)
    await pool.live(44, workers="w")
    assert await pool.state("j") == "running"
    assert (await pool.submit("j", "b", grace=30)).state == "running"
    await pool.live(60, workers="w", apis="b")
    assert await pool.field("j", "cancel") is None
    await pool.finish("w", "j")
    assert await pool.state("j") == "done"


async def test_a_job_whose_api_server_is_gone_ends_with_its_grace_time(pool):
    await pool.register("w")
    await pool.submit("running", "a", grace=30)
    await pool.submit("queued", "a", grace=30)
    await pool.live(46, workers="w")
    assert await pool.state("queued") == "cancelled"
    assert await pool.field("running", "cancel") == "cancelled"


# The total deadline of what runs


async def test_at_its_total_deadline_the_worker_is_asked_to_stop_and_the_reader_is_told(pool):
    await pool.register("w")
    await pool.submit("j", timeout=20)
    epoch = await pool.epoch("j")
    message = "The request did not finish within its time limit."
    async with pool.listening_as() as reader, pool.listening(pool.keys.control("w")) as worker:
        await pool.live(19, apis="a", workers="w")
        assert await reader.events() == []
        await pool.live(1, apis="a", workers="w")
        assert await reader.events() == [["failed", "j", epoch, "request_timeout", message, None]]
        assert await worker.heard() == [f"cancel {epoch} j".encode()]
    assert await pool.state("j") == "running"
    assert await pool.finish("w", "j", outcome="cancelled") == "accepted"
    standing = await pool.submit("j", timeout=20)
    assert standing.state == "expired"
    assert isinstance(standing.error, RequestTimeoutError)


async def test_a_worker_that_does_not_let_go_loses_the_job(pool):
    await pool.register("w")
    await pool.submit("j", timeout=20)
    epoch = await pool.epoch("j")
    await pool.submit("k")
    await pool.live(20, apis="a", workers="w")
    await pool.live(14, apis="a", workers="w")
    assert await pool.states("j", "k") == ["running", "queued"]
    await pool.live(1, apis="a", workers="w")
    assert await pool.states("j", "k") == ["expired", "running"]
    assert await pool.leases("w") == {"k"}
    assert await pool.finish("w", "j", epoch=epoch) == "duplicate"
    assert isinstance((await pool.submit("j", timeout=20)).error, RequestTimeoutError)


async def test_a_job_past_its_deadline_whose_worker_dies_has_expired(pool):
    await pool.register("w")
    await pool.submit("j", timeout=20)
    await pool.live(21, apis="a", workers="w")
    await pool.reap(dead="w")
    standing = await pool.submit("j", timeout=20)
    assert standing.state == "expired"
    assert isinstance(standing.error, RequestTimeoutError)


async def test_an_orphan_ends_at_its_total_deadline(pool):
    await pool.register("w")
    await pool.submit("j", timeout=20)
    await pool.live(15, apis="a", workers="w")
    await pool.reap(dead="w")
    await pool.live(5, apis="a")
    standing = await pool.submit("j", timeout=20)
    assert isinstance(standing.error, RequestTimeoutError)


@pytest.mark.parametrize("jobs", [450])
async def test_much_that_is_due_is_ended_in_parts(pool, jobs):
    for n in range(jobs):
        await pool.submit(f"j{n}", queue_timeout=5)
    await pool.wait(5)
    waits = [(await pool.reap(api="a")).wait for _ in range(3)]
    assert waits == [0, 0, 5]
    assert await pool.queued() == []
