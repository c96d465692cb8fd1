"""Loading in a thread: however it ends, whoever waits hears of it."""

from __future__ import annotations

import asyncio
import sys

import pytest

from queueserve.errors import EngineError
from workers.engines.loading import in_daemon_thread

BOUND = 10.0


@pytest.mark.parametrize("way, says", [(sys.exit, "SystemExit"), (iter(()).__next__, "StopIter")])
async def test_a_library_that_leaves_in_an_unusual_way_is_an_error(way, says):
    with pytest.raises(EngineError, match=f"loading ended with {says}"):
        async with asyncio.timeout(BOUND):
            await in_daemon_thread(way)


async def test_an_error_comes_as_it_is():
    with pytest.raises(ZeroDivisionError):
        async with asyncio.timeout(BOUND):
            await in_daemon_thread(lambda: 1 // 0)
