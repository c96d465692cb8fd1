"""Notices an engine that is stuck inside a step: it beats, and answers nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

from workers.engines.base import EngineStuckError

_TICK = 1.0
_MOST = 5.0  # seconds that one look may count: a process that was stopped has not waited


class Watchdog:
    """Ends the worker when a job has been on its engine for `timeout` seconds without a step.

    `jobs` gives the names of what the engine should be working on, `steps` its count of steps.
    """

    def __init__(
        self, jobs: Callable[[], Iterable[str]], steps: Callable[[], int], *, timeout: float
    ) -> None:
        self._jobs = jobs
        self._steps = steps
        self._timeout = timeout
        self._seen = -1  # steps
        self._waited: dict[str, float] = {}  # seconds since a job came, or since the last step

    async def run(self) -> None:
        """Look for ever. Raises EngineStuckError."""
        last = time.monotonic()
        while True:
            await asyncio.sleep(min(_TICK, self._timeout / 4))
            now = time.monotonic()
            self.look(min(_MOST, now - last))
            last = now

    def look(self, passed: float) -> None:
        """Look once, `passed` seconds after the last time. Raises EngineStuckError."""
        steps = self._steps()
        waited = self._waited if steps == self._seen else {}
        self._seen = steps
        self._waited = {job: waited.get(job, -passed) + passed for job in self._jobs()}
        if any(seconds >= self._timeout for seconds in self._waited.values()):
            raise EngineStuckError(
                f"the engine has made no step for {self._timeout:g} s, "
                f"with {len(self._waited)} jobs on it"
            )
