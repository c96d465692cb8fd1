"""What threads deliver in one step comes to the event loop in one call."""

import asyncio
import random
import threading

import pytest

from workers.engines.llama_cpp_gathering import Gathering


@pytest.fixture
async def calls():
    return []


@pytest.fixture
async def gathering(calls):
    return Gathering(asyncio.get_running_loop(), calls.append)


async def settle():
    for _ in range(3):
        await asyncio.sleep(0)


async def test_one_call_when_all_that_are_expected_have_delivered(gathering, calls):
    for source in "abc":
        gathering.deliver(source, 0, more=True)
    await settle()
    calls.clear()
    gathering.deliver("c", 1, more=True)
    gathering.deliver("a", 1, more=True)
    await settle()
    assert calls == []
    gathering.deliver("b", 1, more=True)
    await settle()
    assert calls == [[("c", 1), ("a", 1), ("b", 1)]]


async def test_a_second_delivery_shows_that_a_step_is_over(gathering, calls):
    gathering.deliver("a", 0, more=True)
    gathering.deliver("b", 0, more=True)
    await settle()
    calls.clear()
    gathering.deliver("a", 1, more=True)  # b holds its token back
    await settle()
    assert calls == []
    gathering.deliver("a", 2, more=True)
    await settle()
    assert calls == [[("a", 1), ("a", 2)]]


async def test_nobody_waits_for_one_that_brings_no_more(gathering, calls):
    gathering.deliver("a", 0, more=True)
    gathering.deliver("b", 0, more=True)
    gathering.deliver("b", 1)
    gathering.deliver("a", 1, more=True)
    await settle()
    calls.clear()
    gathering.deliver("a", 2, more=True)
    await settle()
    assert calls == [[("a", 2)]]


async def test_one_that_leaves_lets_the_others_go(gathering, calls):
    gathering.deliver("a", 0, more=True)
    gathering.deliver("b", 0, more=True)
    await settle()
    calls.clear()
    gathering.deliver("a", 1)
    await settle()
    assert calls == []
    gathering.leave("b")
    gathering.leave("unknown")
    await settle()
    assert calls == [[("a", 1)]]


async def test_nothing_is_lost_or_disordered_between_threads(gathering, calls):
    def work(source):
        chance = random.Random(source)
        for number in range(500):
            gathering.deliver(source, number, more=chance.random() < 0.8)
            if chance.random() < 0.2:
                gathering.leave(source)
        gathering.leave(source)

    threads = [threading.Thread(target=work, args=(source,)) for source in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    await settle()
    items = [item for call in calls for item in call]
    for source in range(4):
        assert [number for own, number in items if own == source] == list(range(500))


async def test_a_closed_loop_is_no_error(calls):
    loop = asyncio.new_event_loop()
    loop.close()
    Gathering(loop, calls.append).deliver("a", 0)
    assert calls == []
