"""finish: a job ends once, by the worker and under the epoch that hold it."""

from __future__ import annotations

import pytest

from queueserve.encoding import encode
from queueserve.errors import EngineError
from queueserve.protocol import Result


async def test_a_finish_frees_the_slot_and_dispatches_the_next_job(pool):
    await pool.register("w")
    await pool.submit("j")
    await pool.submit("k")
    assert await pool.finish("w", "j") == "accepted"
    assert await pool.states("j", "k") == ["done", "running"]
    assert await pool.leases("w") == {"k"}


async def test_a_job_ends_once(pool):
    await pool.register("w")
    await pool.submit("j")
    result = encode(Result("one", (1,), "stop", 3, 0))
    assert await pool.finish("w", "j", result=result) == "accepted"
    assert await pool.finish("w", "j", outcome="failed", result=b"{}") == "duplicate"
    standing = await pool.submit("j")
    assert (standing.state, standing.result) == ("done", Result("one", (1,), "stop", 3, 0))


async def test_a_duplicate_finish_frees_no_slot_twice(pool):
    await pool.register("w")
    for name in ("j", "k", "l"):
        await pool.submit(name)
    await pool.finish("w", "j")
    assert await pool.finish("w", "j") == "duplicate"
    assert await pool.states("j", "k", "l") == ["done", "running", "queued"]


async def test_only_the_holder_may_finish(pool):
    await pool.register("w1")
    await pool.submit("j")
    await pool.register("w2")
    assert await pool.finish("w2", "j") == "stale"
    assert await pool.state("j") == "running"


async def test_only_the_current_epoch_may_finish(pool):
    await pool.register("w")
    await pool.submit("j")
    epoch = await pool.epoch("j")
    assert await pool.finish("w", "j", epoch=epoch - 1) == "stale"
    assert await pool.finish("w", "j", epoch=epoch + 1) == "stale"
    assert await pool.finish("w", "j", epoch=epoch) == "accepted"


async def test_the_same_worker_with_an_older_epoch_may_not_finish(pool):
    await pool.register("w1")
    await pool.submit("j")
    first = await pool.epoch("j")
    await pool.reap(dead="w1")
    await pool.resume("j", await pool.epoch("j"))
    await pool.register("w1")
    assert await pool.worker_of("j") == "w1"
    assert await pool.finish("w1", "j", epoch=first) == "stale"
    assert await pool.state("j") == "running"


async def test_the_finish_of_an_orphan_by_its_old_worker_is_stale(pool):
    await pool.register("w")
    await pool.submit("j")
    first = await pool.epoch("j")
    await pool.reap(dead="w")
    for epoch in (first, await pool.epoch("j")):
        assert await pool.finish("w", "j", epoch=epoch) == "stale"
    assert await pool.state("j") == "orphaned"


@pytest.mark.parametrize("state", ["queued", "unknown"])
async def test_a_job_that_does_not_run_cannot_be_finished(pool, state):
    await pool.register("w", slots=1)
    await pool.submit("running")
    if state == "queued":
        await pool.submit("j")
    assert await pool.finish("w", "j", epoch=0) == "stale"
    assert await pool.state("j") == (None if state == "unknown" else "queued")


async def test_a_failure_is_kept_for_a_late_reader(pool):
    await pool.register("w")
    await pool.submit("j")
    reason = b'{"error":{"code":"engine_error","message":"out of memory","param":null}}'
    await pool.finish("w", "j", outcome="failed", result=reason)
    standing = await pool.submit("j")
    assert standing.state == "failed"
    assert isinstance(standing.error, EngineError)
    assert standing.error.message == "out of memory"


async def test_a_result_is_kept_for_two_minutes_and_the_body_is_not(pool):
    await pool.register("w")
    await pool.submit("j", prompt="a long prompt")
    await pool.finish("w", "j")
    assert 119_000 < await pool.redis.pttl(pool.keys.job("j")) <= 120_000
    assert await pool.field("j", "body") == ""


async def test_an_ended_job_is_in_no_index(pool):
    await pool.register("w")
    await pool.submit("j")
    await pool.finish("w", "j")
    for key in (pool.keys.queue, pool.keys.due, pool.keys.by_api("a"), pool.keys.lease("w")):
        assert not await pool.redis.exists(key), key


async def test_a_lost_hint_is_no_lost_job(pool):
    await pool.register("w")
    await pool.submit("j")
    assert await pool.hints("w") == [f"{pool.time} j"]
    await pool.redis.delete(pool.keys.inbox("w"))
    beat = await pool.beat("w")
    assert {job: lease.epoch for job, lease in beat.leases.items()} == {"j": pool.time}
    assert await pool.finish("w", "j") == "accepted"


async def test_epochs_grow_with_every_dispatch(pool):
    await pool.register("w", slots=2)
    await pool.submit("j")
    await pool.submit("k")
    epochs = [await pool.epoch("j"), await pool.epoch("k")]
    await pool.reap(dead="w")
    for name in ("k", "j"):
        epochs.append(await pool.epoch(name))
        await pool.resume(name, epochs[-1])
    await pool.register("w", slots=2)
    epochs += [await pool.epoch("j"), await pool.epoch("k")]
    assert len(set(epochs)) == len(epochs)
    per_job = [await pool.epoch("j"), await pool.epoch("k")]
    assert min(per_job) > max(epochs[:-2])


async def test_an_epoch_is_the_time_of_its_dispatch(pool):
    await pool.register("w", slots=3)
    await pool.submit("j")
    await pool.wait(1.5)
    await pool.submit("k")
    await pool.submit("l")
    epochs = [await pool.epoch(name) for name in ("j", "k", "l")]
    assert epochs == [pool.time - 1_500_000, pool.time, pool.time + 1]


async def test_without_a_test_the_clock_is_the_server_s(pool, functions):
    async def server_time():
        seconds, microseconds = await pool.redis.time()
        return seconds * 1_000_000 + microseconds

    await functions.call("freeze", pool.root, "")
    await functions.call("clock", pool.root, 0)
    await pool.register("w")
    before = await server_time()
    await pool.submit("j")
    assert before < await pool.epoch("j") < await server_time()


async def test_epochs_grow_when_redis_has_lost_its_state(pool):
    await pool.register("w", slots=2)
    await pool.submit("j")
    before = await pool.epoch("j")
    await pool.redis.delete(pool.keys.state)
    await pool.wait(0.001)
    await pool.submit("k")
    assert await pool.epoch("k") > before
    await pool.redis.delete(pool.keys.state)
    await pool.reap(dead="w")
    assert await pool.epoch("j") > before


@pytest.mark.parametrize("back", [1, 3600])
async def test_epochs_grow_when_the_clock_goes_back(pool, back):
    await pool.register("w", slots=2)
    await pool.submit("j")
    before = await pool.epoch("j")
    await pool.wait(-back)
    await pool.submit("k")
    assert await pool.epoch("k") == before + 1
    await pool.reap(dead="w")
    assert {await pool.epoch("j"), await pool.epoch("k")} == {before + 2, before + 3}


async def test_a_job_keeps_its_fence_when_the_clock_goes_back_and_the_state_is_lost(pool):
    await pool.register("w")
    await pool.submit("j")
    before = await pool.epoch("j")
    await pool.redis.delete(pool.keys.state)
    await pool.wait(-3600)
    await pool.reap(dead="w")
    assert await pool.epoch("j") == before + 1
    await pool.redis.delete(pool.keys.state)
    await pool.resume("j", before + 1)
    await pool.register("w2")
    assert (await pool.state("j"), await pool.epoch("j")) == ("running", before + 2)


async def test_a_job_that_redis_has_lost_comes_back_under_a_higher_epoch(pool):
    await pool.register("w")
    await pool.submit("j")
    before = await pool.epoch("j")
    await pool.redis.flushdb()
    await pool.wait(1)
    await pool.submit("j", known=True)
    await pool.register("w2")
    assert await pool.epoch("j") > before
    assert await pool.finish("w", "j", epoch=before) == "stale"
    assert await pool.finish("w2", "j") == "accepted"
