"""Batches of about one length: nothing starves, nothing is computed for nobody."""

from __future__ import annotations

import asyncio
import threading

import pytest

from queueserve.errors import EngineError
from workers.engines.length_batching import LengthBatcher

BOUND = 10.0


class Model:
    """Computes while the test lets it, and remembers the batches."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.free = threading.Event()
        self.free.set()

    def compute(self, items: list[str]) -> list[int]:
        assert self.free.wait(BOUND)
        self.batches.append(items)
        return [len(item) for item in items]


@pytest.fixture
def model():
    return Model()


@pytest.fixture
async def batcher(model):
    made = LengthBatcher(model.compute, length=len, most_items=4, most_tokens=40)
    yield made
    model.free.set()
    await made.close()


async def test_values_come_in_the_order_of_their_items(batcher):
    items = ["a" * (1 + n * 7 % 11) for n in range(50)]
    async with asyncio.timeout(BOUND):
        halves = await asyncio.gather(batcher.values(items[:25]), batcher.values(items[25:]))
    assert halves[0] + halves[1] == [len(item) for item in items]


async def test_a_batch_has_one_length_and_stays_within_its_bounds(batcher, model):
    await batcher.values(["a" * n for n in (10, 1, 20, 1, 10, 30, 1, 10, 20, 1, 39, 1)])
    for batch in model.batches:
        lengths = [len(item) for item in batch]
        assert len(batch) <= 4
        assert len(batch) * max(lengths) <= 40 or len(batch) == 1
    assert ["a"] * 4 in model.batches
    assert len(model.batches) == 5  # 39 | 30 | 20 20 | 10 10 10 1 | 1 1 1 1


async def test_what_has_waited_longest_is_in_the_next_batch(batcher, model):
    model.free.clear()
    first = asyncio.create_task(batcher.values(["x"]))
    await asyncio.sleep(0)
    odd = asyncio.create_task(batcher.values(["o" * 33]))
    await asyncio.sleep(0)
    many = asyncio.create_task(batcher.values(["y"] * 20))
    await asyncio.sleep(0)
    model.free.set()
    await asyncio.gather(first, odd, many)
    assert model.batches[1] == ["o" * 33]


async def test_what_nobody_awaits_any_more_is_not_computed(batcher, model):
    model.free.clear()
    kept = asyncio.create_task(batcher.values(["x"]))
    await asyncio.sleep(0)
    left = asyncio.create_task(batcher.values(["left"] * 8))
    await asyncio.sleep(0)
    left.cancel()
    await asyncio.wait((left,))
    model.free.set()
    await kept
    await batcher.values(["z"])
    assert model.batches == [["x"], ["z"]]


async def test_a_failure_reaches_those_of_its_batch_and_no_others(caplog):
    def compute(items: list[str]) -> list[int]:
        if "bad" in items:
            raise RuntimeError("out of memory")
        return [0] * len(items)

    batcher = LengthBatcher(compute, length=len, most_items=1, most_tokens=40)
    bad, good = await asyncio.gather(
        batcher.values(["bad", "fine"]), batcher.values(["good"]), return_exceptions=True
    )
    assert isinstance(bad, EngineError)
    assert "out of memory" in bad.message
    assert good == [0]
    assert "out of memory" in caplog.text
    await batcher.close()


async def test_closing_ends_who_waits(batcher, model):
    model.free.clear()
    waiting = asyncio.create_task(batcher.values(["x", "y" * 30]))
    await asyncio.sleep(0)
    closing = asyncio.create_task(batcher.close())
    await asyncio.wait((waiting,), timeout=BOUND)
    assert waiting.cancelled()
    model.free.set()
    await closing


async def test_closing_ends_who_waits_for_the_batch_in_hand(batcher, model):
    model.free.clear()
    waiting = asyncio.create_task(batcher.values(["x"]))
    await asyncio.sleep(0.05)  # it is computed now
    closing = asyncio.create_task(batcher.close())
    await asyncio.wait((waiting,), timeout=BOUND)
    assert waiting.cancelled()
    model.free.set()
    await closing


async def test_values_that_are_missing_are_a_failure_of_their_batch():
    batcher = LengthBatcher(lambda items: items[1:], length=len, most_items=4, most_tokens=40)
    async with asyncio.timeout(BOUND):
        with pytest.raises(EngineError, match="could not compute"):
            await batcher.values(["a", "b"])
    await batcher.close()
