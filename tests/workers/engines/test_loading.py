"""Loading in a thread: however it ends, whoever waits hears of it."""

from __future__ import annotations

import asyncio
import sys

import pytest

from queueserve.errors import EngineError
from workers.engines.loading import in_daemon_thread, leave_a_core

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


def test_torch_computes_on_all_but_one_of_the_processors_of_a_container(
    monkeypatch, control_groups
):
    torch = pytest.importorskip("torch")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    try:
        for quota, threads in (("350000 100000", 2), ("100000 100000", 1)):
            torch.set_num_threads(8)
            control_groups(["0::/"], {"cpu.max": quota})
            leave_a_core(torch)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
