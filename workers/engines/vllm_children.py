"""vLLM's processes, tied to this one: they, and the memory of a GPU, must not outlive it."""

from __future__ import annotations

import asyncio
import multiprocessing

from queueserve.tether import Tether

_LOOK = 0.5  # seconds


class Children:
    """The processes that vLLM starts while it loads, in a thread, and ends when it is closed."""

    def __init__(self) -> None:
        self._tethers: dict[int, Tether] = {}

    async def watch(self) -> None:
        """Tie for ever what comes."""
        while True:
            self.tie()
            await asyncio.sleep(_LOOK)

    def tie(self) -> None:
        """Tie those that are there and are not tied."""
        for child in multiprocessing.active_children():
            if child.pid is not None and child.pid not in self._tethers:
                self._tethers[child.pid] = Tether(child.pid, grace=2)

    def release(self) -> None:
        """Let go: all of them have ended."""
        for tether in self._tethers.values():
            tether.release()
        self._tethers.clear()
