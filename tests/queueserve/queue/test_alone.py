"""Jobs that end their workers: found out alone, kept as dead letters; their batch-mates live."""

from __future__ import annotations

import pytest

from queueserve.errors import PoisonJobError
from queueserve.protocol import ModelCard
from queueserve.queue.dead import clear, dead_letters
from queueserve.queue.directory import announce

CARD = ModelCard(name="m", pool="m", context_length=100, engine="fake")


async def crash(pool, worker, *jobs):
    """The worker dies, and the readers of these jobs send them on."""
    await pool.reap(dead=worker)
    for job in jobs:
        if await pool.state(job) == "orphaned":
            assert await pool.resume(job, await pool.epoch(job))


async def crash_twice(pool, *jobs):
    for worker in ("w1", "w2"):
        await pool.register(worker, slots=8)
        await crash(pool, worker, *jobs)


async def alone(pool) -> list[str]:
    return [job.decode() for job in await pool.redis.zrange(pool.keys.alone, 0, -1)]


@pytest.fixture
async def suspects(pool):
    """Two jobs that have shared two workers that died."""
    await pool.submit("bad")
    await pool.submit("good")
    await crash_twice(pool, "bad", "good")
    return pool


async def test_after_a_second_crash_jobs_wait_for_a_worker_to_themselves(suspects):
    assert await alone(suspects) == ["bad", "good"]
    assert await suspects.queued() == []
    await suspects.register("w3", slots=8)
    assert await suspects.leases("w3") == {"bad"}
    await suspects.submit("other")
    await suspects.beat("w3")
    assert await suspects.leases("w3") == {"bad"}
    assert await suspects.states("good", "other") == ["queued", "queued"]


async def test_a_job_that_crashes_alone_fails_and_its_batch_mate_is_done(suspects):
    await suspects.register("w3", slots=8)
    await crash(suspects, "w3", "bad")
    standing = await suspects.submit("bad")
    assert standing.state == "failed"
    assert isinstance(standing.error, PoisonJobError)
    assert "ended 3 workers, the last one alone" in standing.error.message
    await suspects.register("w4", slots=8)
    assert await suspects.leases("w4") == {"good"}
    assert await suspects.finish("w4", "good") == "accepted"
    assert await suspects.state("good") == "done"


async def test_a_worker_that_has_run_the_suspects_serves_everybody_again(suspects):
    await suspects.register("w3", slots=8)
    await suspects.submit("other")
    await suspects.finish("w3", "bad")
    await suspects.finish("w3", "good")
    assert await suspects.leases("w3") == {"other"}
    assert await suspects.redis.hget(suspects.keys.worker("w3"), "state") == b"ready"
    assert await suspects.redis.zrange(suspects.keys.free, 0, -1) == [b"w3"]
    assert not await suspects.redis.exists(suspects.keys.alone, suspects.keys.reserved)


async def test_a_busy_worker_is_emptied_first_and_the_others_go_on(pool):
    await pool.submit("bad")
    await pool.register("w1")
    await crash(pool, "w1", "bad")
    await pool.register("w2")
    await pool.reap(dead="w2")
    await pool.register("w3", "w4", slots=2)
    await pool.submit("one")
    await pool.submit("two")  # one on each
    await pool.resume("bad", await pool.epoch("bad"))
    assert await alone(pool) == ["bad"]
    assert await pool.redis.hgetall(pool.keys.reserved) == {b"w3": b""}
    await pool.submit("three")
    await pool.submit("four")
    assert await pool.leases("w3") == {"one"}
    assert await pool.leases("w4") == {"two", "three"}
    await pool.finish("w3", "one")
    assert await pool.leases("w3") == {"bad"}
    assert await pool.states("three", "four") == ["running", "queued"]


async def test_at_most_half_of_the_workers_are_reserved(pool):
    jobs = [f"j{n}" for n in range(6)]
    for job in jobs:
        await pool.submit(job)
    await crash_twice(pool, *jobs)
    await pool.register("a", "b", "c", "d", slots=8)
    assert await pool.redis.hlen(pool.keys.reserved) == 2
    await pool.submit("other")
    assert await pool.worker_of("other") is not None


async def test_a_suspect_stays_alone_when_its_worker_registers_again(suspects):
    await suspects.register("w3", slots=8)
    await suspects.redis.delete(suspects.keys.worker("w3"))
    await suspects.submit("other")
    await suspects.register("w3", slots=8)
    assert await suspects.leases("w3") == {"bad"}


async def test_a_suspect_that_is_given_back_is_not_charged_and_waits_again(suspects):
    await suspects.register("w3", slots=8)
    await suspects.drain("w3", leave=True)
    await suspects.resume("bad", await suspects.epoch("bad"))
    assert await suspects.field("bad", "attempts") == "2"
    assert await alone(suspects) == ["bad", "good"]


async def test_a_suspect_can_be_cancelled_and_runs_out_of_time(suspects):
    await suspects.cancel("bad")
    assert await alone(suspects) == ["good"]
    await suspects.live(61, apis="a")
    assert await suspects.states("bad", "good") == ["cancelled", "expired"]
    assert await alone(suspects) == []


async def test_a_suspect_whose_hash_is_gone_is_forgotten(suspects):
    await suspects.redis.delete(suspects.keys.job("bad"))
    await suspects.register("w3", slots=8)
    assert await suspects.leases("w3") == {"good"}


# Dead letters


async def give_up(pool, *jobs, **fields):
    """Each job ends three workers, alone."""
    for job in jobs:
        await pool.submit(job, **fields)
        for n in range(3):
            await pool.register(f"{job}-w{n}")
            await crash(pool, f"{job}-w{n}", job)


async def test_a_job_that_was_given_up_is_kept_with_its_reason_and_body(pool, redis, keys):
    await announce(redis, keys, [CARD])
    await give_up(pool, "bad", prompt="boom", tenant="t")
    (letter,) = await dead_letters(redis, keys, "m")
    assert (letter.id, letter.pool, letter.attempts, letter.tenant) == ("bad", "m", 3, "t")
    assert letter.workers == ("bad-w0", "bad-w1", "bad-w2")
    assert "ended 3 workers" in letter.reason
    assert letter.died >= letter.submitted == pool.time / 1e6
    assert '"prompt":"boom"' in letter.body
    assert letter.body_bytes == len(letter.body)
    week = 7 * 86400
    for key in (pool.keys.dead, pool.keys.dead_letter("bad")):
        assert week - 60 < await redis.ttl(key) <= week


async def test_a_long_body_is_not_kept(pool, redis, keys):
    await give_up(pool, "bad", prompt="x" * 300_000)
    (letter,) = await dead_letters(redis, keys, "m")
    assert (letter.body, letter.body_bytes > 300_000) == ("", True)


async def test_only_the_last_hundred_are_kept(pool, redis, keys):
    await redis.zadd(pool.keys.dead, {f"old{n}": pool.time - 1 - n for n in range(100)})
    await redis.hset(pool.keys.dead_letter("old99"), "reason", "x")
    await give_up(pool, "bad")
    assert await redis.zcard(pool.keys.dead) == 100
    assert await redis.zrange(pool.keys.dead, -1, -1) == [b"bad"]
    assert not await redis.exists(pool.keys.dead_letter("old99"))


async def test_the_letters_of_all_models_are_found_and_deleted(pool, redis, keys):
    await announce(redis, keys, [CARD])
    await give_up(pool, "one", "two")
    assert [letter.id for letter in await dead_letters(redis, keys, None)] == ["one", "two"]
    assert await dead_letters(redis, keys, "other") == []
    assert await clear(redis, keys, "other") == 0
    assert await clear(redis, keys, None) == 2
    assert await dead_letters(redis, keys, None) == []
    assert not await redis.exists(pool.keys.dead, pool.keys.dead_letter("one"))


async def test_a_letter_that_is_not_ours_is_shown_as_far_as_it_goes(pool, redis, keys):
    await redis.zadd(pool.keys.dead, {"a": 1, b"\xff": 2, "c": 3})
    await redis.hset(pool.keys.dead_letter("a"), mapping={"died": "soon", "body": b"\xff{"})
    await redis.set(pool.keys.dead_letter("c"), "a string")
    (letter,) = await dead_letters(redis, keys, "m")
    assert (letter.id, letter.died) == ("a", 0)
