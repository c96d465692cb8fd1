"""A child process that is kept running: started again when it ends, and ended with its parent."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress

from queueserve.tether import Tether

log = logging.getLogger(__name__)

CONFIGURATION_ERROR = os.EX_CONFIG
"""The exit status of a process that would fail again: it is not started again."""
_USAGE_ERROR = 2  # what click, and most commands, end with for arguments that make no sense

_FIRST_DELAY = 0.5  # seconds
_LONGEST_DELAY = 30.0
_STEADY = 60.0  # seconds after which a start counts as good, and delays begin small again


class ChildConfigurationError(Exception):
    """The child has ended for a reason that starting it again cannot mend; it has said which."""


class Child:
    """Keeps `command` running under `name`; awaits `ended` with its pid whenever it has ended."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        ended: Callable[[int], Awaitable[None]],
    ) -> None:
        self.name = name
        self._command = command
        self._env = env
        self._ended = ended
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._process.pid if self._process is not None else None

    async def keep_running(self) -> None:
        """Return after `stop`. Raises ChildConfigurationError."""
        delay = _FIRST_DELAY
        while not self._stopping.is_set():
            began = time.monotonic()
            status = await self._run_once()
            if self._stopping.is_set():
                return
            if status in {CONFIGURATION_ERROR, _USAGE_ERROR}:
                raise ChildConfigurationError(f"{self.name} cannot run with this configuration")
            if time.monotonic() - began > _STEADY:
                delay = _FIRST_DELAY
            log.warning("%s %s; it starts again in %.1f s", self.name, _how(status), delay)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)
            delay = min(delay * 2, _LONGEST_DELAY)

    async def _run_once(self) -> int:
        self._idle.clear()
        try:
            # A session of its own: Ctrl-C in the terminal is for the parent, which asks it to stop.
            self._process = process = await asyncio.create_subprocess_exec(
                *self._command,
                env=self._env,
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
            log.debug("%s runs", self.name, extra={"pid": process.pid})
            with Tether(process.pid):
                status = await self._status_of(process)
            self._process = None
            await self._ended(process.pid)
            return status
        finally:
            self._process = None
            self._idle.set()

    async def _status_of(self, process: asyncio.subprocess.Process) -> int:
        if self._stopping.is_set():  # asked for while the process was being made
            self._signal(signal.SIGTERM)
        try:
            return await process.wait()
        except asyncio.CancelledError:
            self._signal(signal.SIGKILL)  # nobody would end it later
            raise

    async def stop(self, *, hurry: asyncio.Event, grace: float) -> None:
        """Ask the process to end, kill it after `grace` seconds or when `hurry` is set; wait."""
        self._stopping.set()
        self._signal(signal.SIGTERM)
        waits = {asyncio.create_task(self._idle.wait()), asyncio.create_task(hurry.wait())}
        await asyncio.wait(waits, timeout=grace, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if not self._idle.is_set():
            log.warning("%s is killed", self.name)
            self._signal(signal.SIGKILL)
        await self._idle.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)


def _how(status: int) -> str:
    if status < 0:
        with suppress(ValueError):
            return f"was ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"
