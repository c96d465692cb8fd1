"""The jobs of one request: opened together, read fairly, closed together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol, Self, TypeAlias

from queueserve.protocol import Event, Job
from queueserve.queue.owner import Owner
from queueserve.queue.stream import JobStream

Batch: TypeAlias = list[tuple[int, list[Event]]]
"""(index of the job, its next events), in the order in which they came."""

_PATIENCE = 1.0  # seconds; see `beginning`


class Reader(Protocol):
    """Reads all jobs of a request."""

    @property
    def position(self) -> int:
        """The last job's place in the queue when they were submitted; 0: none had to wait."""

    @property
    def only(self) -> JobStream | None:
        """The stream of the only job; None if there are several."""

    async def read(self) -> Batch:
        """Return all that has come since the last call, at least one; empty at the end.

        Raises the QueueServeError of the first job that fails, after what had come before.
        """


class _One:
    """The reader of a single job: nothing between it and its stream."""

    only: JobStream

    def __init__(self, owner: Owner, job: Job) -> None:
        self._owner = owner
        self._job = job

    async def __aenter__(self) -> Self:
        self.only = await self._owner.open(self._job)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.only.aclose()

    @property
    def position(self) -> int:
        return self.only.position

    async def read(self) -> Batch:
        try:
            return [(0, await anext(self.only))]
        except StopAsyncIteration:
            return []


class _Many:
    """The reader of several jobs: each has a task that waits in line to hand over its events.

    The line is as long as there are jobs, and first come first served, so no job starves another
    and a slow reader holds the tasks back.
    """

    only = None

    def __init__(self, streams: Sequence[JobStream]) -> None:
        self._streams = streams
        self._line: asyncio.Queue[tuple[int, list[Event] | Exception]] = asyncio.Queue(len(streams))
        self._running = len(streams)
        self._error: Exception | None = None

    @property
    def position(self) -> int:
        return max(stream.position for stream in self._streams)

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(self._hand_over(index, stream))
            for index, stream in enumerate(self._streams)
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    async def read(self) -> Batch:
        batch: Batch = []
        while self._error is None and self._running and not batch:
            self._take(batch, *await self._line.get())
            while self._error is None and not self._line.empty():
                self._take(batch, *self._line.get_nowait())
        if self._error is not None and not batch:
            raise self._error
        return batch

    def _take(self, batch: Batch, index: int, what: list[Event] | Exception) -> None:
        if isinstance(what, StopAsyncIteration):
            self._running -= 1
        elif isinstance(what, Exception):
            self._error = what
        else:
            batch.append((index, what))

    async def _hand_over(self, index: int, stream: JobStream) -> None:
        while True:
            try:
                what: list[Event] | Exception = await anext(stream)
            except Exception as error:  # noqa: BLE001 - raised again by `read`
                what = error
            await self._line.put((index, what))
            if isinstance(what, Exception):
                return


def opened(owner: Owner, jobs: Sequence[Job]) -> AbstractAsyncContextManager[Reader]:
    """Open all jobs, give their reader, and close them all, whatever happens.

    Entering raises what Owner.open raises if any of them cannot be opened.
    """
    return _One(owner, jobs[0]) if len(jobs) == 1 else _together(owner, jobs)


@asynccontextmanager
async def _together(owner: Owner, jobs: Sequence[Job]) -> AsyncIterator[Reader]:
    opening = [asyncio.create_task(owner.open(job)) for job in jobs]
    try:
        await asyncio.wait(opening)
        async with _Many([task.result() for task in opening]) as reader:
            yield reader
    finally:
        # Shielded: a client that leaves at this very moment must not keep them open.
        await asyncio.shield(_close(opening))


async def _close(opening: Sequence[asyncio.Task[JobStream]]) -> None:
    await asyncio.wait(opening)  # what is half open cannot be closed; opening is bounded
    for task in opening:
        if not task.cancelled() and task.exception() is None:
            await task.result().aclose()


async def beginning(reader: Reader, *, jobs: int, choices: int) -> Batch:
    """Read until it is clear that the request is good: no job can be refused any more.

    A job that has an event has been accepted. One that still waits for a slot does not hold up
    the others for long, if another choice of the same prompt has been accepted.
    Raises the QueueServeError that ends the request.
    """
    if jobs == 1:
        return await reader.read()
    batch: Batch = []
    started: set[int] = set()
    prompts = jobs // choices
    patience: float | None = None  # on the event loop's clock
    while len(started) < jobs:
        try:
            async with asyncio.timeout_at(patience):
                more = await reader.read()
        except TimeoutError:
            break
        batch += more
        started.update(index for index, _ in more)
        if patience is None and len({index // choices for index in started}) == prompts:
            patience = asyncio.get_running_loop().time() + _PATIENCE
    return batch
