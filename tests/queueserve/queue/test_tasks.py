"""Background tasks end when told to, also those that swallow a cancel, and nothing is hidden."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from queueserve.queue.tasks import Tasks, run_together


async def swallow_one_cancel() -> None:
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(60)
    await asyncio.sleep(60)


async def fail() -> None:
    raise ValueError("boom")


async def test_a_task_that_swallows_a_cancel_ends_all_the_same():
    tasks = Tasks()
    task = tasks.start(swallow_one_cancel(), "stubborn")
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await tasks.aclose()
    assert task.cancelled()


async def test_the_exception_of_a_task_is_logged_with_its_name(caplog):
    tasks = Tasks()
    tasks.start(fail(), "the one")
    await tasks.settle(5)
    assert "the one" in caplog.text
    assert "boom" in caplog.text


async def test_together_ends_with_the_first_and_raises_what_it_raised():
    async with asyncio.timeout(30):
        with pytest.raises(ValueError, match="boom"):
            await run_together(swallow_one_cancel(), fail())
