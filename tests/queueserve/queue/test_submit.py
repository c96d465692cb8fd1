"""submit: acknowledged once, attached to later, bounded; and what nobody dispatches expires."""

from __future__ import annotations

import orjson
import pytest

from queueserve.encoding import decode_job, encode
from queueserve.errors import (
    IdempotencyConflictError,
    NoWorkerError,
    QueueFullError,
    QueueTimeoutError,
    RequestTimeoutError,
    ServerExpiredError,
)
from queueserve.protocol import Constraint, Continuation, Result
from queueserve.queue.producer import Limits

AT = Continuation(tokens=(1, 2), chars=3, prompt_hash="p", fingerprint="f")


async def test_a_job_without_a_worker_waits_centrally(pool):
    standing = await pool.submit("j")
    assert standing.new
    assert (standing.state, standing.epoch, standing.worker) == ("queued", 0, "")
    assert standing.position == 1
    assert await pool.queued() == ["j"]


async def test_a_job_with_a_free_slot_runs_at_once(pool):
    await pool.register("w")
    standing = await pool.submit("j")
    assert (standing.state, standing.epoch, standing.worker) == ("running", pool.time, "w")
    assert standing.position == 0
    assert await pool.queued() == []
    assert await pool.leases("w") == {"j"}


async def test_a_job_that_need_not_wait_leaves_the_queue_s_keys_alone(pool):
    await pool.register("w", slots=2)
    assert (await pool.submit("j")).worker == "w"
    named = ("queue", "waiting", "fair")
    assert not await pool.redis.exists(*(getattr(pool.keys, name) for name in named))
    assert (await pool.submit("k", tenant="t", cost=7, priority=0)).worker == "w"
    # The last slot: its tenant owes for it, should others have to wait now.
    charged = await pool.redis.hgetall(pool.keys.fair)
    assert {name: int(value) for name, value in charged.items()} == {
        b"last:0:t": 7,
        b"tag:0:t": 0,
    }


@pytest.mark.parametrize("place", ["queue", "alone"])
async def test_a_newcomer_passes_nobody_who_waits_although_a_slot_is_free(pool, place):
    await pool.register("w")
    await pool.submit("runs")
    await pool.submit("waits")
    # A function that died in the middle: the slot is free, and nobody was dispatched to it.
    await pool.redis.zrem(pool.keys.queue, "waits")
    await pool.redis.zadd(getattr(pool.keys, place), {"waits": 0})
    await pool.redis.hdel(pool.keys.lease("w"), "runs")
    await pool.redis.zadd(pool.keys.free, {"w": 1})
    assert (await pool.submit("new")).state == "queued"
    await pool.reap()
    assert await pool.worker_of("waits") == "w"
    assert await pool.queued() == ["new"]


async def test_what_the_worker_fetches_is_what_was_submitted(pool):
    await pool.register("w")
    own = {"prompt": "Grüße 🙂", "priority": 3, "tenant": "a:b c"}
    own["constraint"] = Constraint("regex", "a+|ß", param="guided_regex")
    job = pool.job("j", **own)
    await pool.submit("j", **own, resume=AT)
    body, resume = await pool.redis.hmget(pool.keys.job("j"), "body", "resume")
    assert decode_job(body) == job
    assert resume == b'{"tokens":[1,2],"chars":3,"prompt_hash":"p","fingerprint":"f"}'


async def test_submitting_twice_is_one_job(pool):
    await pool.submit("j")
    again = await pool.submit("j")
    assert not again.new
    assert (again.state, again.position) == ("queued", 1)
    assert await pool.queued() == ["j"]
    assert await pool.redis.hgetall(pool.keys.waiting) == {b"default": b"1"}


async def test_submitting_a_running_job_again_is_no_second_run(pool):
    await pool.register("w", slots=2)
    first = await pool.submit("j")
    again = await pool.submit("j")
    assert not again.new
    assert (again.state, again.epoch, again.worker) == ("running", first.epoch, "w")
    assert await pool.hints("w") == [f"{first.epoch} j"]


async def test_submitting_an_ended_job_again_gives_its_result(pool):
    await pool.register("w")
    await pool.submit("j")
    result = Result("hi", (1, 2), "stop", 5, 0)
    await pool.finish("w", "j", result=encode(result))
    again = await pool.submit("j")
    assert (again.new, again.state, again.result) == (False, "done", result)


async def test_a_result_of_a_newer_worker_is_read_without_what_is_not_known_here(pool):
    await pool.register("w")
    await pool.submit("j")
    newer = orjson.loads(encode(Result("hi", (1, 2), "stop", 5, 0))) | {"mood": "good"}
    await pool.finish("w", "j", result=orjson.dumps(newer))
    assert (await pool.submit("j")).result == Result("hi", (1, 2), "stop", 5, 0)


async def test_a_job_that_was_done_before_it_heard_of_its_cancel_is_done(pool):
    await pool.register("w")
    await pool.submit("j")
    assert await pool.cancel("j") == "running"
    await pool.finish("w", "j")
    assert (await pool.submit("j")).state == "done"


async def test_another_body_under_the_same_id_is_a_conflict(pool):
    await pool.submit("j", prompt="one")
    with pytest.raises(IdempotencyConflictError):
        await pool.submit("j", "b", prompt="two")
    assert await pool.field("j", "api") == "a"
    assert await pool.redis.smembers(pool.keys.by_api("a")) == {b"j"}


async def test_attaching_moves_the_reader(pool):
    await pool.submit("j", "a")
    await pool.submit("j", "b")
    assert await pool.field("j", "api") == "b"
    assert not await pool.redis.exists(pool.keys.by_api("a"))
    assert await pool.redis.smembers(pool.keys.by_api("b")) == {b"j"}
    async with pool.listening_as("a") as old, pool.listening_as("b") as new:
        await pool.wait(61)
        await pool.submit("other", "b")  # renews nothing, but shows that b is known
        await pool.reap()
        assert await old.events() == []
        assert [event[:4] for event in await new.events()] == [["failed", "j", 0, "no_worker"]]


async def test_attaching_to_an_ended_job_leaves_no_open_job_behind(pool):
    await pool.register("w")
    await pool.submit("j", "a")
    await pool.finish("w", "j")
    await pool.submit("j", "b")
    assert not await pool.redis.exists(pool.keys.by_api("b"))


async def test_an_expired_api_server_is_told_so_and_nothing_is_queued(pool):
    await pool.submit("j", "a")
    await pool.wait(15)
    with pytest.raises(ServerExpiredError):
        await pool.submit("k", "a", new_api=False)
    with pytest.raises(ServerExpiredError):
        await pool.submit("j", "a", new_api=False)
    assert await pool.queued() == ["j"]


async def test_the_bound_of_the_queue(pool):
    pool.limits = Limits(max_queue=2)
    await pool.submit("j1", tenant="t1")
    await pool.submit("j2", tenant="t2")
    with pytest.raises(QueueFullError) as refused:
        await pool.submit("j3", tenant="t3")
    assert "2 jobs wait" in refused.value.message
    assert await pool.queued() == ["j1", "j2"]
    assert await pool.state("j3") is None
    assert not (await pool.submit("j2", tenant="t2")).new  # what is in stays in


async def test_the_bound_of_a_tenant_leaves_room_for_others(pool):
    pool.limits = Limits(max_queue=10, max_queue_per_tenant=1)
    await pool.submit("j1", tenant="t1")
    with pytest.raises(QueueFullError):
        await pool.submit("j2", tenant="t1")
    assert (await pool.submit("j3", tenant="t2")).new


async def test_running_jobs_do_not_count_against_the_bound(pool):
    pool.limits = Limits(max_queue=1, max_queue_per_tenant=1)
    await pool.register("w", slots=2)
    for name in ("j1", "j2", "j3"):
        await pool.submit(name)
    assert await pool.states("j1", "j2", "j3") == ["running", "running", "queued"]
    with pytest.raises(QueueFullError):
        await pool.submit("j4")
    await pool.finish("w", "j1")
    assert (await pool.submit("j4")).state == "queued"


async def test_a_queue_of_no_length_still_takes_what_need_not_wait(pool):
    pool.limits = Limits(max_queue=0)
    await pool.register("w")
    assert (await pool.submit("j1")).state == "running"
    with pytest.raises(QueueFullError):
        await pool.submit("j2")


async def test_a_job_that_was_acknowledged_before_is_not_refused(pool):
    pool.limits = Limits(max_queue=1)
    await pool.submit("j1")
    assert (await pool.submit("j2", known=True)).position == 2


async def test_retry_after_follows_the_measured_rate(pool):
    pool.limits = Limits(max_queue=40)
    await pool.register("w")
    await pool.submit("first")
    for n in range(40):
        await pool.submit(f"j{n}")
    for n in range(200):  # 10 jobs a second
        await pool.wait(0.1)
        await pool.beat("w")
        job = (await pool.leases("w")).pop()
        await pool.submit(f"k{n}", known=True)
        await pool.finish("w", job)
    with pytest.raises(QueueFullError) as refused:
        await pool.submit("more")
    assert refused.value.retry_after == pytest.approx(40 / 10, rel=0.25)


@pytest.mark.parametrize(
    "finished, expected", [(0, 10.0), (1, 120.0)], ids=["nothing measured", "hopelessly slow"]
)
async def test_retry_after_has_bounds(pool, finished, expected):
    pool.limits = Limits(max_queue=1000)
    await pool.register("w")
    for n in range(1000 + 1):
        await pool.submit(f"j{n}")
    if finished:
        await pool.finish("w", (await pool.leases("w")).pop())
        await pool.submit("again")
    with pytest.raises(QueueFullError) as refused:
        await pool.submit("more")
    assert refused.value.retry_after == expected


async def test_without_a_worker_the_queue_deadline_says_so(pool):
    await pool.submit("j", queue_timeout=20, timeout=600)
    async with pool.listening_as() as ear:
        await pool.live(19, apis="a")
        assert await pool.state("j") == "queued"
        await pool.live(2, apis="a")
        message = "No worker serves this model at the moment."
        assert await ear.events() == [["failed", "j", 0, "no_worker", message, None]]
    assert await pool.state("j") == "expired"
    assert isinstance((await pool.submit("j", queue_timeout=20, timeout=600)).error, NoWorkerError)


async def test_with_busy_workers_the_queue_deadline_says_so(pool):
    await pool.register("w")
    await pool.submit("running")
    await pool.submit("j", queue_timeout=20, timeout=600)
    await pool.live(21, apis="a", workers="w")
    standing = await pool.submit("j", queue_timeout=20, timeout=600)
    assert (standing.state, await pool.state("running")) == ("expired", "running")
    assert isinstance(standing.error, QueueTimeoutError)
    assert await pool.queued() == []


async def test_a_total_deadline_that_comes_first_ends_a_queued_job(pool):
    await pool.submit("j", queue_timeout=60, timeout=10)
    assert (await pool.reap(api="a")).wait == 5  # a third of the timeout, so that a gap is seen
    await pool.wait(6)
    assert (await pool.reap(api="a")).wait == 4
    await pool.live(5, apis="a")
    standing = await pool.submit("j", queue_timeout=60, timeout=10)
    assert standing.state == "expired"
    assert isinstance(standing.error, RequestTimeoutError)


async def test_a_job_deleted_by_hand_is_skipped_and_frees_its_place(pool):
    pool.limits = Limits(max_queue=10, max_queue_per_tenant=1)
    await pool.submit("j")
    await pool.redis.delete(pool.keys.job("j"))
    await pool.register("w")
    assert await pool.queued() == []
    assert not await pool.redis.exists(pool.keys.due)
    assert (await pool.submit("running")).state == "running"
    assert (await pool.submit("k")).state == "queued"
    await pool.finish("w", "running")
    assert await pool.state("k") == "running"
