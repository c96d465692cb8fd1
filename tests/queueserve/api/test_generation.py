"""The jobs of one request: opened together, read fairly, closed together."""

from __future__ import annotations

import asyncio

import pytest

from queueserve.api.generation import beginning, opened
from queueserve.errors import EngineError, QueueFullError
from queueserve.protocol import Delta, Finished, Job, Started


def jobs(count: int) -> list[Job]:
    return [Job(id=f"j-{index}", pool="m", model="m", kind="chat") for index in range(count)]


def texts(batch) -> list[tuple[int, str]]:
    return [(index, event.text) for index, events in batch for event in events]


@pytest.mark.parametrize("count", [1, 3])
async def test_all_are_read_to_their_ends_and_closed(hand, count):
    async with opened(hand, jobs(count)) as reader:
        for index in range(count):
            hand.start(index)
            hand.say(f"text {index}", index)
            hand.finish(index)
        kinds = {}
        while batch := await reader.read():
            for index, events in batch:
                kinds.setdefault(index, []).extend(type(event) for event in events)
        assert sorted(kinds) == list(range(count))
        assert all(seen == [Started, Delta, Finished] for seen in kinds.values())
    assert sorted(hand.closed) == [f"j-{index}" for index in range(count)]


@pytest.mark.parametrize("count", [1, 3])
async def test_if_one_cannot_be_opened_all_are_closed(hand, count):
    hand.refusals = [QueueFullError("full"), None, QueueFullError("full")]
    with pytest.raises(QueueFullError):
        async with opened(hand, jobs(count)):
            pytest.fail("not all are open")
    assert hand.closed == ["j-1"] * (count == 3)


@pytest.mark.parametrize("steps", range(12))
@pytest.mark.parametrize("count", [1, 3])
async def test_a_client_that_leaves_at_any_moment_leaves_nothing_open(hand, count, steps):
    async def request() -> None:
        async with opened(hand, jobs(count)) as reader:
            for index in range(count):
                hand.start(index)
                hand.finish(index)
            while await reader.read():
                pass

    task = asyncio.create_task(request())
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    for _ in range(5):
        await asyncio.sleep(0)
    assert sorted(hand.closed) == sorted(stream.job.id for stream in hand.streams)


async def test_a_failure_is_raised_after_what_came_before_it(hand):
    with pytest.raises(EngineError):  # noqa: PT012 - up to where it is raised
        async with opened(hand, jobs(3)) as reader:
            hand.start(1)
            hand.say("last words", 1)
            hand.streams[1].fail(EngineError("x"))
            seen = []
            while batch := await reader.read():
                seen += [type(event) for _, events in batch for event in events]
            pytest.fail("the failure was lost")
    assert seen == [Started, Delta]
    assert sorted(hand.closed) == ["j-0", "j-1", "j-2"]


async def test_several_take_turns_however_much_one_has_to_say(hand):
    async with opened(hand, jobs(3)) as reader:
        for index in range(3):
            hand.start(index)
        await reader.read()
        for _ in range(100):
            hand.say("loud", 0)
        hand.say("quiet", 2)
        batch = await reader.read()
        while len({index for index, _ in batch}) < 2:
            hand.say("louder", 0)
            batch += await reader.read()
        assert (2, "quiet") in texts(batch)
        assert [index for index, _ in batch].count(0) <= 2


async def test_what_nobody_reads_stays_in_its_stream(hand):
    async with opened(hand, jobs(2)) as reader:
        hand.start(0)
        for _ in range(50):
            hand.say("x", 0)
            await asyncio.sleep(0)
        assert len(hand.streams[0]._ready) > 40
        hand.start(1)
        read = 0
        while read < 52:
            read += sum(len(events) for _, events in await reader.read())


async def test_a_request_that_is_cancelled_while_it_opens_closes_what_opens_later(hand, until):
    hand.hold = asyncio.Event()

    async def run() -> None:
        async with opened(hand, jobs(3)):
            pytest.fail("cancelled before")

    running = asyncio.create_task(run())
    await until(lambda: hand.asked == 3)
    running.cancel()
    await asyncio.sleep(0.01)
    assert not running.done()
    hand.hold.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert sorted(hand.closed) == ["j-0", "j-1", "j-2"]


async def test_the_beginning_waits_for_every_prompt(hand):
    async with opened(hand, jobs(4)) as reader:
        waiting = asyncio.create_task(beginning(reader, jobs=4, choices=2))
        hand.start(0)
        hand.start(1)
        await asyncio.sleep(1.3)
        assert not waiting.done()
        hand.start(3)
        hand.start(2)
        assert sorted(index for index, _ in await waiting) == [0, 1, 2, 3]


async def test_the_beginning_does_not_wait_long_for_a_choice_without_a_slot(hand):
    async with opened(hand, jobs(2)) as reader:
        hand.start(0)
        batch = await beginning(reader, jobs=2, choices=2)
        assert [index for index, _ in batch] == [0]
        hand.start(1)
        assert [index for index, _ in await reader.read()] == [1]


async def test_a_refusal_in_the_beginning_is_raised(hand):
    async with opened(hand, jobs(2)) as reader:
        hand.start(0)
        hand.streams[1].fail(EngineError("x"))
        with pytest.raises(EngineError):
            await beginning(reader, jobs=2, choices=1)
