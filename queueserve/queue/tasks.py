"""Background tasks that have an owner, and a place where their exceptions are seen."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

log = logging.getLogger(__name__)

_ASK_AGAIN = 0.1  # seconds


class Tasks:
    """The tasks of one object; an exception in one is logged, and `aclose` ends them all."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run `work` until it ends or this is closed."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("task %s failed", task.get_name(), exc_info=error)

    async def settle(self, timeout: float) -> None:
        """Wait for the tasks to end by themselves, at most `timeout` seconds."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=timeout)

    async def aclose(self) -> None:
        """Cancel what still runs, and wait until it has ended."""
        await end(set(self._tasks))


async def end(tasks: set[asyncio.Task[Any]]) -> None:
    """Cancel tasks, and wait until they have ended.

    A task may swallow a cancel: redis-py reads under a zero timeout, which takes one that comes at
    that moment for its own. So it is asked again.
    """
    running = tasks
    while running := {task for task in running if not task.done()}:
        for task in running:
            task.cancel()
        await asyncio.wait(running, timeout=_ASK_AGAIN)


async def run_together(*work: Coroutine[Any, Any, None]) -> None:
    """Run until the first of them ends, then end the others. Raises what the first one raised."""
    tasks = {asyncio.create_task(each) for each in work}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end(tasks)
        for task in tasks:
            if not task.cancelled():
                task.exception()  # seen; the first one's is raised below
    for task in done:
        task.result()
