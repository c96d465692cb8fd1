"""Callbacks for the next turn of the event loop, all of them with one handle of its."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Turn:
    """Calls what it is given once the callbacks that are due now are done, in order.

    A message with a token for each of a thousand streams would else make a thousand handles.

    What they have to write they leave to the end of the turn. A client that hears something wakes
    up and takes the processor from us, to wait again for the next stream's token; with all of the
    turn's writes in a row it finds them together.
    """

    def __init__(self) -> None:
        self._due: list[Callable[[], None]] = []
        self._writes: list[tuple[Callable[[bytes], object], bytes]] = []

    def soon(self, callback: Callable[[], None]) -> None:
        """Call `callback`, which must not raise, in the next turn."""
        if not self._due:
            asyncio.get_running_loop().call_soon(self._run)
        self._due.append(callback)

    def write(self, write: Callable[[bytes], object], data: bytes) -> None:
        """For callbacks: call `write(data)`, which must not raise, at the end of this turn."""
        self._writes.append((write, data))

    def _run(self) -> None:
        due, self._due = self._due, []
        for callback in due:
            callback()
        writes, self._writes = self._writes, []
        for write, data in writes:
            write(data)
