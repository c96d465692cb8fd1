"""Brings what the threads of one engine step deliver to the event loop in one call.

llama.cpp answers the sequences of a step one after another, some tenths of a millisecond apart. The
outputs wait until every sequence that is to bring a token in this step has brought it; one that
delivers for the second time shows that the next step has begun, and that one of the others had
nothing to say. So nothing waits longer than a step, and there is no timer.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Source = TypeVar("Source", bound=Hashable)
Item = TypeVar("Item")


class Gathering(Generic[Source, Item]):
    """Collects (source, item) from threads; `take` gets them, on the event loop."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, take: Callable[[list[tuple[Source, Item]]], None]
    ) -> None:
        self._loop = loop
        self._take = take
        self._lock = threading.Lock()
        self._items: list[tuple[Source, Item]] = []
        self._delivered: set[Source] = set()
        self._expected: set[Source] = set()
        self._scheduled = False

    def deliver(self, source: Source, item: Item, *, more: bool = False) -> None:
        """Hand over an item; `more` if the source is to bring one in the next step too."""
        with self._lock:
            next_step = source in self._delivered
            self._items.append((source, item))
            self._delivered.add(source)
            (self._expected.add if more else self._expected.discard)(source)
            if next_step or self._expected <= self._delivered:
                self._schedule()

    def leave(self, source: Source) -> None:
        """Do not wait for this source any more."""
        with self._lock:
            self._expected.discard(source)
            if self._items and self._expected <= self._delivered:
                self._schedule()

    def _schedule(self) -> None:
        if self._scheduled:
            return
        self._scheduled = True
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is interested
            self._loop.call_soon_threadsafe(self._flush)

    def _flush(self) -> None:
        with self._lock:
            items, self._items = self._items, []
            self._delivered.clear()
            self._scheduled = False
        self._take(items)
