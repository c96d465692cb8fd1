"""An engine that never comes back from a step ends its worker, and its jobs go on elsewhere."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from workers.engines.base import EngineStuckError
from workers.engines.fake import FakeEngine
from workers.engines.fake_faults import FaultyEngine
from workers.settings import WorkerSettings
from workers.watchdog import Watchdog
from workers.worker import Worker


async def test_jobs_of_a_stuck_engine_go_on_elsewhere(house, redis_url, read):
    engine = FaultyEngine(tick=0.01)
    settings = WorkerSettings(
        redis_url=redis_url, model_names=("m",), heartbeat_timeout=2.0, stall_timeout=1.0
    )
    running = asyncio.create_task(Worker(engine, settings).run(asyncio.Event()))
    await house.until(lambda: house.redis.zcard("qs:{m}:alive"), equal=1)
    plane = await house.plane()

    async def disturb():
        with pytest.raises(EngineStuckError, match="no step for 1 s, with 1 jobs on it"):
            await asyncio.wait_for(running, 60)
        await house.worker(FakeEngine(tick=0))

    stalls = house.job(messages=({"role": "user", "content": "[[stall 5]]"},))
    _, tokens, end = await read(await plane.owner.open(stalls), after=5, then=disturb)
    assert (len(tokens), end.finish_reason) == (40, "length")


class Engine:
    """What a watchdog sees of one."""

    def __init__(self):
        self.steps = 0
        self.jobs = []

    def watchdog(self):
        return Watchdog(lambda: self.jobs, lambda: self.steps, timeout=10.0)


def test_steps_idleness_and_jobs_that_come_and_go_are_no_stall():
    engine = Engine()
    watchdog = engine.watchdog()
    for _ in range(20):  # idle
        watchdog.look(5.0)
    engine.jobs = ["a"]
    for number in range(20):  # slow, but it goes on
        engine.steps += number % 2
        watchdog.look(5.0)
    for number in range(20):  # an engine may answer without a step
        engine.jobs = [str(number)]
        watchdog.look(5.0)


def test_a_job_without_a_step_is_one_after_the_bound():
    engine = Engine()
    watchdog = engine.watchdog()
    engine.jobs = ["a"]
    watchdog.look(5.0)
    watchdog.look(5.0)
    engine.jobs = ["a", "b"]
    with pytest.raises(EngineStuckError, match="no step for 10 s, with 2 jobs"):
        watchdog.look(5.0)


def test_a_process_does_not_wait_for_the_thread_of_a_stuck_engine():
    code = """
import threading, time
from workers.cli import _give_up
from workers.engines.base import EngineStuckError
threading.Thread(target=time.sleep, args=(600,)).start()
_give_up(EngineStuckError("no step"))
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    assert "queueserve-worker: no step" in ended.stderr
