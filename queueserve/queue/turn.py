"""Callbacks for the next turn of the event loop, all of them with one handle of its."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Turn:
    """Calls what it is given once the callbacks that are due now are done, in order.

    A message with a token for each of a thousand streams would else make a thousand handles.
    """

    def __init__(self) -> None:
        self._due: list[Callable[[], None]] = []

    def soon(self, callback: Callable[[], None]) -> None:
        """Call `callback`, which must not raise, in the next turn."""
        if not self._due:
            asyncio.get_running_loop().call_soon(self._run)
        self._due.append(callback)

    def _run(self) -> None:
        due, self._due = self._due, []
        for callback in due:
            callback()
