"""A retry with the same Idempotency-Key: one reader at a time, and the last one wins."""

from __future__ import annotations

import asyncio

import pytest

from queueserve.errors import (
    CancelledJobError,
    IdempotencyConflictError,
    NoWorkerError,
    RedisUnavailableError,
)
from workers.engines.fake import FakeEngine

BOUND = 60.0  # seconds that any single wait may take, on however busy a machine


async def no_redis(*_, **__):
    raise RedisUnavailableError("Redis does not answer.")


@pytest.fixture
def quick_watch(monkeypatch):
    monkeypatch.setattr("queueserve.queue.owner._WATCH", 0.05)


async def test_another_body_under_the_key_leaves_the_first_reader_alone(house, read):
    await house.worker()
    plane = await house.plane()
    job = house.job(grace=5.0)

    async def conflict() -> None:
        with pytest.raises(IdempotencyConflictError):
            await plane.owner.open(house.job(id=job.id, sampling={"max_tokens": 3}))

    assert len((await read(await plane.owner.open(job), after=5, then=conflict))[1]) == 40


@pytest.mark.usefixtures("quick_watch")
async def test_a_cancel_that_redis_did_not_hear_does_not_end_the_retry(house, read):
    await house.worker()
    plane = await house.plane()
    job = house.job(grace=1.0, sampling={"max_tokens": 400})  # it runs for longer than its grace
    first = await plane.owner.open(job)
    await anext(first)
    cancel, plane.owner._producer.cancel = plane.owner._producer.cancel, no_redis
    await first.aclose()
    await house.until(lambda: unheard(plane), equal=1)
    plane.owner._producer.cancel = cancel
    assert len((await read(await plane.owner.open(job)))[1]) == 400


async def unheard(plane) -> int:
    return len(plane.owner._cancels._unheard)


async def test_a_cancel_that_arrives_after_the_retry_does_not_end_it(house, read):
    await house.worker()
    plane = await house.plane()
    job = house.job(grace=1.0, sampling={"max_tokens": 400})  # it runs for longer than its grace
    first = await plane.owner.open(job)
    await anext(first)
    plain, on_its_way, retried = plane.owner._producer.cancel, asyncio.Event(), asyncio.Event()
    answered = asyncio.get_running_loop().create_future()

    async def late(*args) -> str:
        on_its_way.set()
        await retried.wait()
        answered.set_result(await plain(*args))
        return answered.result()

    plane.owner._producer.cancel = late
    await first.aclose()
    await on_its_way.wait()
    retry = await plane.owner.open(job)
    retried.set()
    assert len((await read(retry))[1]) == 400
    assert await answered == "moved"


async def test_a_retry_of_a_run_that_is_being_stopped_runs_anew(house, read):
    """The grace time is over and the worker was told, but has not said yet that it has stopped."""
    worker, _ = await house.worker()
    plane = await house.plane()
    job = house.job(grace=0.2, sampling={"max_tokens": 400})
    first = await plane.owner.open(job)
    await anext(first)
    stop, soon = worker.runner.cancel, asyncio.get_running_loop().call_later
    worker.runner.cancel = lambda *args: soon(0.3, stop, *args)  # it is busy
    await first.aclose()

    async def asked() -> bool:
        return await house.redis.hexists(f"qs:{{m}}:job:{job.id}", "cancel")

    await house.until(asked, equal=True)
    assert len((await read(await plane.owner.open(job)))[1]) == 400


async def test_a_submit_that_never_arrived_can_be_retried(house, read):
    await house.worker()
    plane = await house.plane()
    job = house.job(grace=5.0)
    submit, plane.owner._producer.submit = plane.owner._producer.submit, no_redis
    with pytest.raises(RedisUnavailableError):
        await plane.owner.open(job)
    plane.owner._producer.submit = submit
    await plane.owner._cancels._tasks.settle(BOUND)  # the cancel of what may have arrived
    assert len((await read(await plane.owner.open(job)))[1]) == 40


async def test_a_retry_of_what_only_time_has_ended_runs_anew(house, read):
    plane = await house.plane()
    job = house.job(grace=5.0, queue_timeout=0.1)
    for _ in range(2):  # no worker was there, twice
        with pytest.raises(NoWorkerError):
            await anext(await plane.owner.open(job))
    await house.worker()
    assert len((await read(await plane.owner.open(job)))[1]) == 40
    assert len((await read(await plane.owner.open(job)))[1]) == 40  # and what is done is replayed
    assert await house.redis.hget(f"qs:{{m}}:job:{job.id}", "state") == b"expired"
    assert await house.redis.exists(f"qs:{{m}}:job:{job.id}.3") == 0


@pytest.mark.parametrize("state", [b"orphaned", b"expired"])
async def test_a_retry_of_what_was_delivered_runs_anew_if_its_finish_was_lost(house, read, state):
    """The worker dies between the end that it publishes and its finish: the result is lost."""
    worker, stop = await house.worker()
    worker._publisher.finish = lambda *_: None
    plane = await house.plane()
    job = house.job(grace=5.0)
    whole = await read(await plane.owner.open(job))
    stop.set()
    if state == b"orphaned":
        await house.worker()

    async def stands() -> bytes:
        return await house.redis.hget(f"qs:{{m}}:job:{job.id}", "state")

    await house.until(stands, equal=b"orphaned")
    if state == b"expired":  # once its reader has been told as often as it is told
        await house.redis.hset(f"qs:{{m}}:job:{job.id}", "notified", 9)
        await house.redis.zadd("qs:{m}:due", {job.id: 1})
        await house.until(stands, equal=state)
        await house.worker()
    text, tokens, _ = await read(await plane.owner.open(job))
    assert (text, tokens) == whole[:2]


async def test_the_first_reader_ends_when_a_retry_reads_at_another_server(house, read, monkeypatch):
    monkeypatch.setattr("queueserve.queue.owner._SILENT_RUNNING", 0.5)
    engine = FakeEngine(tick=0.05)  # its answer takes 50 seconds, until it is hurried
    await house.worker(engine)
    one, two = await house.plane(), await house.plane()
    job = house.job(grace=5.0, sampling={"max_tokens": 1000})
    first = await one.owner.open(job)
    await anext(first)
    second = asyncio.create_task(read(await two.owner.open(job)))
    with pytest.raises(CancelledJobError, match="took over"):
        async for _ in first:
            pass
    assert not second.done()
    await first.aclose()
    engine._tick = 0
    assert len((await second)[1]) == 1000


async def test_a_retry_gets_the_events_of_a_job_that_is_still_being_prepared(
    house, read, monkeypatch
):
    monkeypatch.setattr("queueserve.queue.owner._SILENT_RUNNING", 1000.0)  # nothing asks again
    worker, _ = await house.worker()
    go_on, encode = asyncio.Event(), worker.runner._preparation._prompter.encode

    async def slow(job):
        await go_on.wait()
        return await encode(job)

    worker.runner._preparation._prompter.encode = slow
    one, two = await house.plane(), await house.plane()
    job = house.job(grace=5.0)
    first = await one.owner.open(job)
    await house.until(lambda: held(worker), equal=1)
    await first.aclose()
    second = await two.owner.open(job)
    await house.until(lambda: moved(worker), equal=1)
    go_on.set()
    assert len((await read(second))[1]) == 40
    assert await moved(worker) == 0


async def held(worker) -> int:
    return len(worker.runner.running)


async def moved(worker) -> int:
    return len(worker.runner._moved)


async def test_a_client_that_leaves_while_its_retry_attaches_leaves_nothing_behind(house):
    await house.worker()
    one, two = await house.plane(), await house.plane()
    job = house.job(grace=5.0, sampling={"max_tokens": 4000})
    first = await one.owner.open(job)
    await anext(first)
    two.owner._producer.resync = lambda *_: asyncio.sleep(60)
    opening = asyncio.create_task(two.owner.open(job))
    await house.until(lambda: opened(two), equal=1)
    await asyncio.sleep(0.1)
    opening.cancel()
    await asyncio.wait([opening])
    assert await opened(two) == 0
    await one.owner._producer.cancel(job, "")


async def opened(plane) -> int:
    return len(plane.owner._open)
