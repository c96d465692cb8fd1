"""A worker and an API server on a real Redis: the life of a job, and what disturbs it."""

from __future__ import annotations

import asyncio

import pytest

from queueserve.encoding import encode, encode_events
from queueserve.errors import (
    CancelledJobError,
    ContextLengthExceededError,
    EngineError,
    IdempotencyConflictError,
    InvalidRequestError,
    NoWorkerError,
    QueueFullError,
    QueueTimeoutError,
    RequestTimeoutError,
)
from queueserve.protocol import Delta, Failed, Finished, Job, Orphaned, Started
from queueserve.queue.producer import Limits
from workers.engines.base import Sequence
from workers.engines.fake import FakeEngine
from workers.settings import WorkerSettings
from workers.worker import Worker


async def test_a_job_is_answered_and_leaves_nothing_behind(house, read):
    await house.worker()
    plane = await house.plane()
    text, tokens, end = await read(await plane.owner.open(house.job()))
    assert text
    assert len(tokens) == 40
    assert end.finish_reason == "length"
    await house.until(lambda: house.redis.zcard("qs:{m}:due"), equal=0)
    assert await house.redis.hget("qs:{m}:job:j0", "state") == b"done"
    assert await house.redis.ttl("qs:{m}:job:j0") > 0


async def test_a_stop_string_ends_the_text_before_it_and_frees_the_slot(house, read):
    await house.worker()
    plane = await house.plane()
    whole, _, _ = await read(await plane.owner.open(house.job()))
    stop = whole[20:29]
    text, tokens, end = await read(
        await plane.owner.open(house.job(sampling={"stop": (stop,), "max_tokens": 4000}))
    )
    assert text == whole[: whole.index(stop)]
    assert end.finish_reason == "stop"
    assert len(tokens) < 40


async def test_a_stream_interval_puts_several_tokens_into_one_event(house, read):
    await house.worker(stream_interval=8)
    plane = await house.plane()
    sizes = []
    async for events in await plane.owner.open(house.job()):
        sizes += [len(event.tokens) for event in events if isinstance(event, Delta)]
    assert sizes == [8] * 5


async def test_a_prompt_that_is_too_long_is_refused_before_anything_is_sent(house):
    await house.worker(FakeEngine(context_length=64, tick=0))
    plane = await house.plane()
    stream = await plane.owner.open(
        house.job(messages=({"role": "user", "content": "word " * 100},))
    )
    with pytest.raises(ContextLengthExceededError, match="64 tokens"):
        await anext(stream)


async def test_bad_messages_are_the_clients_error(house):
    await house.worker()
    plane = await house.plane()
    part = {"type": "video", "video": "x"}
    stream = await plane.owner.open(house.job(messages=({"role": "user", "content": [part]},)))
    with pytest.raises(InvalidRequestError):
        await anext(stream)


async def test_a_job_waits_for_a_worker_that_joins_later(house, read):
    plane = await house.plane()
    stream = await plane.owner.open(house.job())
    answer = asyncio.create_task(read(stream))
    await house.worker()
    assert (await answer)[2].seq == 40


async def test_no_worker_within_the_queue_timeout(house):
    plane = await house.plane()
    stream = await plane.owner.open(house.job(queue_timeout=0.1))
    with pytest.raises(NoWorkerError):
        await anext(stream)


async def test_no_slot_within_the_queue_timeout(house):
    await house.worker(FakeEngine(slots=1, tick=0.01))
    plane = await house.plane()
    long = await plane.owner.open(house.job(sampling={"max_tokens": 4000}))
    stream = await plane.owner.open(house.job(queue_timeout=0.1))
    with pytest.raises(QueueTimeoutError):
        await anext(stream)
    await long.aclose()


async def test_a_running_job_is_ended_at_its_total_deadline_and_frees_its_slot(house):
    await house.worker(FakeEngine(slots=1, tick=0.01))
    plane = await house.plane()
    stream = await plane.owner.open(house.job(timeout=0.3, sampling={"max_tokens": 4000}))
    with pytest.raises(RequestTimeoutError):
        async for _ in stream:
            pass
    await house.until(lambda: house.redis.zcard("qs:{m}:free"), equal=1)
    assert await house.redis.hget("qs:{m}:job:j0", "state") == b"expired"


async def test_a_full_queue_says_when_to_come_back(house):
    plane = await house.plane(limits=Limits(max_queue=2))
    streams = [await plane.owner.open(house.job()) for _ in range(2)]
    with pytest.raises(QueueFullError) as error:
        await plane.owner.open(house.job())
    assert 1 <= error.value.retry_after <= 120
    for stream in streams:
        await stream.aclose()


async def test_a_reader_that_leaves_frees_the_slot(house):
    await house.worker(FakeEngine(slots=1, tick=0.01))
    plane = await house.plane()
    stream = await plane.owner.open(house.job(sampling={"max_tokens": 4000}))
    await anext(stream)
    await stream.aclose()
    await house.until(lambda: house.redis.zcard("qs:{m}:free"), equal=1)
    with pytest.raises(CancelledJobError):
        async for _ in stream:
            pass


async def test_a_lost_message_is_asked_for_again(house, read):
    worker, _ = await house.worker()
    plane = await house.plane()
    undisturbed = await read(await plane.owner.open(house.job()))
    stream = await plane.owner.open(house.job())

    async def lose() -> None:
        worker._publisher._events.clear()
        plane.owner._open.pop(stream.job.id)  # what arrives now finds no reader
        await asyncio.sleep(0.03)
        plane.owner._open[stream.job.id] = stream

    again = await read(stream, after=5, then=lose)
    assert again[:2] == undisturbed[:2]


@pytest.mark.usefixtures("soon_missed")
async def test_a_lost_end_is_found_in_redis(house, read):
    await house.worker()
    plane = await house.plane()
    stream = await plane.owner.open(house.job())

    async def lose() -> None:
        plane.owner._open.pop(stream.job.id)
        await house.until(lambda: house.redis.zcard("qs:{m}:due"), equal=0)
        plane.owner._open[stream.job.id] = stream

    _, tokens, end = await read(stream, after=5, then=lose)
    assert len(tokens) == 40
    assert end.finish_reason == "length"


async def test_a_lost_hint_is_healed_by_the_next_heartbeat(house, read):
    worker, _ = await house.worker()
    plane = await house.plane()
    incarnation = worker._current
    take, incarnation._take = incarnation._take, lose_one(incarnation)
    _, tokens, _ = await read(await plane.owner.open(house.job()))
    assert len(tokens) == 40
    assert take != incarnation._take


def lose_one(incarnation):
    """The claim loop's first catch goes overboard, as when a blocked pop is cut."""
    real, lost = incarnation._take, []

    async def take(claims, consumer):
        if not lost:
            lost.extend(claims)
            return
        await real(claims, consumer)

    return take


async def test_a_worker_that_leaves_gives_its_jobs_to_another(house, read):
    _, stop = await house.worker(grace=0.0)
    plane = await house.plane()
    undisturbed = await read(await plane.owner.open(house.job()))
    stream = await plane.owner.open(house.job())

    async def replace() -> None:
        stop.set()
        await house.worker()

    again = await read(stream, after=10, then=replace)
    assert again[:2] == undisturbed[:2]
    assert await house.redis.hget("qs:{m}:job:j1", "attempts") == b"1"


async def test_a_worker_that_drains_takes_nothing_new_when_it_registers_again(house, redis):
    _, stop = await house.worker(grace=10.0)
    plane = await house.plane()
    stream = await plane.owner.open(house.job(sampling={"max_tokens": 4000}))
    await anext(stream)
    (worker,) = await redis.zrange("qs:{m}:alive", 0, -1)
    registration = f"qs:{{m}}:worker:{worker.decode()}"
    stop.set()
    await house.until(lambda: redis.hget(registration, "state"), equal=b"draining")
    await redis.delete(registration)
    await house.until(lambda: redis.hget(registration, "state"), equal=b"draining")
    assert await redis.zcard("qs:{m}:free") == 0
    await stream.aclose()


async def test_an_answer_that_nobody_has_fetched_yet_is_not_run_again(house, redis, monkeypatch):
    monkeypatch.setattr("queueserve.queue.owner._WATCH", 0.05)
    monkeypatch.setattr("queueserve.queue.owner._SILENT_RUNNING", 0.1)
    await house.worker()
    plane = await house.plane()
    stream = await plane.owner.open(house.job())
    await house.until(lambda: redis.hget("qs:{m}:job:j0", "state"), equal=b"done")
    await redis.delete("qs:{m}:job:j0")  # as its time to live does
    await asyncio.sleep(0.5)
    assert await redis.exists("qs:{m}:job:j0") == 0
    await stream.aclose()


async def test_a_retry_with_the_same_id_attaches_and_replays_from_the_start(house, read):
    await house.worker()
    one, two = await house.plane(), await house.plane()
    undisturbed = await read(await one.owner.open(house.job()))
    job = house.job(grace=5.0)
    first = await one.owner.open(job)
    await anext(first)
    await first.aclose()  # the job goes on
    again = await read(await two.owner.open(job))
    assert again[:2] == undisturbed[:2]
    after_the_end = await read(await one.owner.open(job))
    assert after_the_end[:2] == undisturbed[:2]
    with pytest.raises(IdempotencyConflictError):
        await one.owner.open(house.job(id=job.id, sampling={"max_tokens": 3}))


async def test_a_job_with_a_grace_time_ends_when_nobody_comes_back(house):
    await house.worker()
    plane = await house.plane()
    stream = await plane.owner.open(house.job(grace=0.3, sampling={"max_tokens": 4000}))
    await anext(stream)
    await stream.aclose()
    await house.until(lambda: house.redis.zcard("qs:{m}:due"), equal=0)
    assert await house.redis.hget("qs:{m}:job:j0", "state") == b"cancelled"


class _Counting(FakeEngine):
    """Names what it was given."""

    def __init__(self) -> None:
        super().__init__(tick=0.005)
        self.added: list[str] = []

    def add(self, sequence: Sequence) -> None:
        self.added.append(sequence.id)
        super().add(sequence)


def _hint(job: Job, epoch: int, api: str) -> bytes:
    return f"{epoch} {job.id}\n{api}\n".encode() + encode(job)


async def test_a_hint_that_comes_after_its_job_has_ended_runs_nothing(house, read, redis):
    engine = _Counting()
    worker, _ = await house.worker(engine)
    plane = await house.plane()
    first, second = house.job(), house.job()
    await read(await plane.owner.open(first))
    epoch = int(await redis.hget("qs:{m}:job:j0", "epoch"))

    async def snapshot() -> int:
        return worker._current._snapshot

    await house.until(snapshot, above=epoch - 1)
    worker.runner._finished.clear()  # as it does some seconds after the end
    inbox = f"qs:{{m}}:inbox:{worker._current.consumer.worker}"
    await redis.rpush(inbox, _hint(first, epoch, plane.owner.api))
    await read(await plane.owner.open(second))  # whose hint comes later
    assert [name.partition(":")[0] for name in engine.added] == ["j0", "j1"]


async def test_a_cancel_that_comes_before_the_hint_of_its_job_stops_it(house, read, redis):
    engine = _Counting()
    worker, _ = await house.worker(engine)
    plane = await house.plane()
    consumer, gone = worker._current.consumer, house.job(id="gone")
    epoch = 2**50
    worker.runner.cancel("gone", epoch, consumer)
    await redis.rpush(f"qs:{{m}}:inbox:{consumer.worker}", _hint(gone, epoch, plane.owner.api))
    await read(await plane.owner.open(house.job()))
    assert not [name for name in engine.added if name.startswith("gone")]


@pytest.mark.usefixtures("soon_missed")
async def test_nonsense_on_every_channel_is_skipped(house, read, redis, skipped):
    await house.worker()
    plane = await house.plane()
    (worker,) = await redis.zrange("qs:{m}:alive", 0, -1)
    stream = await plane.owner.open(house.job())
    junk = [b"", b"\xff\xfe", b"[1,2]", b'[["delta"]]', b'{"a":1}', b'[["x","j0",1]]']
    for body in junk:
        await redis.publish(f"qs:reply:{plane.owner.api}", body)
        await redis.publish(f"qs:{{m}}:control:{worker.decode()}", body)
        await redis.rpush(f"qs:{{m}}:inbox:{worker.decode()}", body or b"x")
    await redis.publish(f"qs:{{m}}:control:{worker.decode()}", "cancel 17 nothing")
    await redis.publish(f"qs:{{m}}:control:{worker.decode()}", "resync 99999 api j0")
    assert len((await read(stream))[1]) == 40

    async def count() -> int:
        return skipped.counts.total()

    await house.until(count, equal=3 * len(junk))
    skipped.assert_is(message=len(junk), control_message=len(junk), hint=len(junk))


async def test_an_inbox_that_is_not_ours_is_skipped_and_its_jobs_come_with_heartbeats(
    house, read, redis, skipped, monkeypatch
):
    monkeypatch.setattr("queueserve.queue.consumer._CLAIM_WAIT", 0.1)
    await house.worker()
    (worker,) = await redis.zrange("qs:{m}:alive", 0, -1)
    await redis.set(f"qs:{{m}}:inbox:{worker.decode()}", "not ours")
    plane = await house.plane()
    assert len((await read(await plane.owner.open(house.job())))[1]) == 40
    assert skipped.counts["inbox"] > 0
    assert len([line for line in skipped.lines if "inbox" in line]) == 1


@pytest.mark.parametrize("waits", [False, True])
async def test_what_a_stranger_publishes_for_a_job_it_does_not_hold_is_dropped(
    house, read, redis, waits
):
    await house.worker(FakeEngine(slots=1, tick=0.005))
    plane = await house.plane()
    undisturbed = await read(await plane.owner.open(house.job()))
    before = [await plane.owner.open(house.job())] if waits else []
    stream = await plane.owner.open(house.job())
    job, far = stream.job.id, 2**53
    forged = [
        Started(job, far, 0, 5, 0, "p", "f", "stranger"),
        Delta(job, far, 0, 0, "forged", (7,)),
        Finished(job, far, 1, 6, "", "stop"),
        Failed(job, 0, "engine_error", "forged"),
        Orphaned(job, far),
        Failed(job, far, "engine_error", "forged"),
    ]
    for _ in range(5):
        for event in forged:
            await redis.publish(f"qs:reply:{plane.owner.api}", encode_events([event]))
    assert (await read(stream))[:2] == undisturbed[:2]
    for other in before:
        assert (await read(other))[:2] == undisturbed[:2]


async def test_a_malformed_job_fails_and_the_worker_lives(house, read, functions, skipped):
    await house.worker()
    plane = await house.plane()
    await read(await plane.owner.open(house.job()))
    body = b'{"id": 5}'
    await functions.call(
        "submit", "qs:{m}", "bad", plane.owner.api, 2_000_000, 0, body, "d", 8, "t", 1, 1,
        60_000_000, 60_000_000, 0, 3, 100, 100, b"", 0,
    )  # fmt: skip
    await house.until(lambda: house.redis.zcard("qs:{m}:due"), equal=0)
    assert await house.redis.hget("qs:{m}:job:bad", "state") == b"failed"
    skipped.assert_is(job=1)
    assert len((await read(await plane.owner.open(house.job())))[1]) == 40


async def test_a_models_default_counts_where_the_request_leaves_it_open(house, read):
    await house.worker(defaults={"temperature": 0.0})
    plane = await house.plane()
    seeds = [{"temperature": 1.0, "seed": seed} for seed in (1, 2)]
    drawn = [await read(await plane.owner.open(house.job(sampling=seed))) for seed in seeds]
    assert drawn[0][1] != drawn[1][1]
    left_open = [house.job(sampling=seed, unset=("temperature",)) for seed in seeds]
    greedy = [await read(await plane.owner.open(job)) for job in left_open]
    assert greedy[0][1] == greedy[1][1]


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"chat_template": "nothing"}, "no chat template 'nothing'"),
        ({"tool_parser": "nothing"}, "--tool-parser nothing"),
        ({"reasoning_parser": "nothing"}, "--reasoning-parser nothing"),
    ],
)
def test_what_no_model_could_mend_is_told_before_one_is_loaded(wrong, says):
    settings = WorkerSettings(redis_url="redis://", model_names=("m",), **wrong)
    with pytest.raises(EngineError, match=says):
        Worker(FakeEngine(), settings)
