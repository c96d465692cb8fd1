"""Batches of inputs of about the same length, from all that is awaited at the moment."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from queueserve.errors import EngineError, QueueServeError

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting(Generic[Item, Value]):
    item: Item
    length: int
    value: asyncio.Future[Value]


class LengthBatcher(Generic[Item, Value]):
    """Computes values of items in batches, in a thread of its own, one batch at a time.

    A batch is padded to its longest item, so one of mixed lengths computes mostly padding. Each
    batch has the item that has waited longest, and those nearest to it in length: as many as
    `most_items` and, with the padding, `most_tokens` allow. So no item waits for ever.
    """

    def __init__(
        self,
        compute: Callable[[list[Item]], list[Value]],
        *,
        length: Callable[[Item], int],
        most_items: int,
        most_tokens: int,
    ) -> None:
        self._compute = compute
        self._length = length
        self._most_items = most_items
        self._most_tokens = most_tokens
        self._waiting: list[_Waiting[Item, Value]] = []  # in the order of their coming
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._work: asyncio.Task[None] | None = None
        self.batches = 0

    async def values(self, items: list[Item]) -> list[Value]:
        """Return the values of the items. What nobody awaits any more is not computed.

        Raises EngineError.
        """
        loop = asyncio.get_running_loop()
        new: list[_Waiting[Item, Value]] = [
            _Waiting(item, self._length(item), loop.create_future()) for item in items
        ]
        self._waiting += new
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._run())
        return await asyncio.gather(*(one.value for one in new))

    async def close(self) -> None:
        """Compute no more; who still waits gets a cancellation."""
        if self._work is not None:
            self._work.cancel()
            await asyncio.wait((self._work,))
        for one in self._waiting:
            one.value.cancel()
        self._waiting.clear()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while batch := self._next():
            items = [one.item for one in batch]
            try:
                values = await loop.run_in_executor(self._thread, self._compute, items)
                for one, value in zip(batch, values, strict=True):
                    if not one.value.done():
                        one.value.set_result(value)
            except Exception as error:  # noqa: BLE001 - given to those who wait
                _fail(batch, error)
            finally:
                self.batches += 1
                for one in batch:  # those that are not done yet: this is being closed
                    one.value.cancel()

    def _next(self) -> list[_Waiting[Item, Value]]:
        """Take the next batch out; empty if nothing is awaited."""
        self._waiting = [one for one in self._waiting if not one.value.done()]
        if not self._waiting:
            return []
        oldest = self._waiting[0]
        by_length = sorted(self._waiting, key=lambda one: one.length)
        start = by_length.index(oldest)
        end = start + 1
        while end - start < self._most_items:
            shorter = by_length[start - 1].length if start else None
            longer = by_length[end].length if end < len(by_length) else None
            padded = (end - start + 1) * by_length[end - 1].length
            if longer is not None and _nearer(longer, shorter, oldest.length):
                if (end - start + 1) * longer > self._most_tokens:
                    break
                end += 1
            elif shorter is not None and padded <= self._most_tokens:
                start -= 1
            else:
                break
        batch = by_length[start:end]
        taken = set(map(id, batch))
        self._waiting = [one for one in self._waiting if id(one) not in taken]
        return batch


def _nearer(longer: int, shorter: int | None, length: int) -> bool:
    return shorter is None or longer - length <= length - shorter


def _fail(batch: list[_Waiting[Item, Value]], error: Exception) -> None:
    if not isinstance(error, QueueServeError):
        log.error("a batch of %d failed", len(batch), exc_info=error)
        error = EngineError(f"the model could not compute this: {error}")
    for one in batch:
        if not one.value.done():
            one.value.set_exception(error)
