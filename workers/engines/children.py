"""A library's processes, tied to this one: they, and the memory of a GPU, must not outlive it."""

from __future__ import annotations

import asyncio
import multiprocessing

from queueserve.tether import Tether

_LOOK = 0.5  # seconds


class Children:
    """The processes that a library starts while it loads, and ends when it is closed."""

    def __init__(self) -> None:
        self._others = {child.pid for child in multiprocessing.active_children()}
        self._tethers: dict[int, Tether] = {}

    async def watch(self) -> None:
        """Tie for ever what comes."""
        while True:
            self.tie()
            await asyncio.sleep(_LOOK)

    def tie(self) -> None:
        """Tie those that have come since this was made, and are not tied."""
        for child in multiprocessing.active_children():
            if child.pid is not None and child.pid not in self._others | self._tethers.keys():
                self._tethers[child.pid] = Tether(child.pid, grace=2)

    def end(self) -> None:
        """Kill those that are left of a load that failed, or that nobody waits for any more."""
        self.tie()
        for child in multiprocessing.active_children():
            if child.pid in self._tethers:
                child.kill()

    def release(self) -> None:
        """Let go: all of them have ended."""
        for tether in self._tethers.values():
            tether.release()
        self._tethers.clear()
