import asyncio
import os
import sys

import pytest

from queueserve import child as child_module
from queueserve.child import Child, ChildConfigurationError

BOUND = 60  # seconds that a test may take


class Ran:
    """A child with this Python code, and the process ids that have ended."""

    def __init__(self, code: str) -> None:
        self.ended: list[int] = []
        self.child = Child(
            "a child", [sys.executable, "-c", code], env=os.environ, ended=self._ended
        )
        self.task = asyncio.create_task(self.child.keep_running())

    async def _ended(self, pid: int) -> None:
        self.ended.append(pid)

    async def until(self, condition) -> None:
        async with asyncio.timeout(BOUND):
            while not condition():  # noqa: ASYNC110 - of files and processes, which set no event
                await asyncio.sleep(0.01)

    async def stop(self, *, grace: float = BOUND, hurry: asyncio.Event | None = None) -> None:
        await self.child.stop(hurry=hurry or asyncio.Event(), grace=grace)
        await asyncio.wait_for(self.task, BOUND)


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setattr(child_module, "_FIRST_DELAY", 0.01)
    return Ran


async def test_what_ends_is_started_again_and_every_end_is_reported(run):
    ran = run("raise SystemExit(1)")
    await ran.until(lambda: len(ran.ended) >= 3)
    await ran.stop()
    assert len(set(ran.ended)) == len(ran.ended)


async def test_what_ends_again_and_again_waits_longer_each_time(run, caplog):
    ran = run("raise SystemExit(1)")
    await ran.until(lambda: len(ran.ended) >= 4)
    await ran.stop()
    delays = [record.args[2] for record in caplog.records]
    assert delays[:4] == [0.01, 0.02, 0.04, 0.08]


@pytest.mark.parametrize("status", [78, 2])
async def test_a_configuration_error_is_not_tried_again(run, status):
    ran = run(f"raise SystemExit({status})")
    with pytest.raises(ChildConfigurationError, match="a child cannot run"):
        await asyncio.wait_for(ran.task, BOUND)
    assert len(ran.ended) == 1


async def test_stop_lets_it_finish(run, tmp_path):
    mark = tmp_path / "mark"
    ran = run(
        "import pathlib, signal, sys, time\n"
        f"mark = pathlib.Path({str(mark)!r})\n"
        "def end(*_):\n    mark.write_text('finished')\n    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "mark.write_text('runs')\n"
        "time.sleep(600)\n"
    )
    await ran.until(lambda: mark.exists() and mark.read_text() == "runs")
    await ran.stop()
    assert mark.read_text() == "finished"
    assert ran.child.pid is None


DEAF = """
import pathlib, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(MARK).touch()
time.sleep(600)
"""


@pytest.mark.parametrize("how", ["grace", "hurry"])
async def test_what_does_not_stop_is_killed(run, how, tmp_path):
    mark = tmp_path / "mark"
    ran = run(DEAF.replace("MARK", repr(str(mark))))
    await ran.until(mark.exists)
    pid = ran.child.pid
    hurry = asyncio.Event()
    if how == "hurry":
        asyncio.get_running_loop().call_later(0.05, hurry.set)
    await ran.stop(grace=0.05 if how == "grace" else 600, hurry=hurry)
    assert ran.ended == [pid]


async def test_a_cancelled_child_does_not_stay(run):
    ran = run("import time; time.sleep(600)")
    await ran.until(lambda: ran.child.pid is not None)
    pid = ran.child.pid
    ran.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ran.task
    async with asyncio.timeout(BOUND):
        while True:
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return
            await asyncio.sleep(0.01)
