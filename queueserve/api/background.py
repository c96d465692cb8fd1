"""Responses that go on without a reader.

The API server that has accepted one owns it: it reads the job, and writes the events and the end to
the store. Nobody takes it over: when its owner dies, whoever asks for it next learns that it has
failed (`stored.Responses.get`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass, replace
from typing import Self

import orjson

from queueserve.api.disconnect import ServerClosingError
from queueserve.api.generation import Reader, opened
from queueserve.api.render_responses import ResponseEvents
from queueserve.api.response import Answer, Status
from queueserve.errors import QueueServeError, RedisUnavailableError
from queueserve.protocol import Job, Started
from queueserve.queue.owner import Owner
from queueserve.queue.responses import ResponseStore, StoredResponse
from queueserve.queue.tasks import Tasks

log = logging.getLogger(__name__)

_OPENING = 60  # seconds within which a job is open, or its server has died
_RETRY = 1.0  # seconds between attempts to tell Redis of an end


@dataclass(frozen=True, slots=True)
class Work:
    """A response to run."""

    tenant: str
    stored: StoredResponse  # as it begins
    job: Job
    answer: Answer


class Background:
    """The background responses of this process."""

    def __init__(self, owner: Owner, store: ResponseStore, *, grace: float) -> None:
        self._owner = owner
        self._store = store
        self._grace = grace
        self._tasks = Tasks()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Let them end within the grace time; what is left then fails."""
        await self._tasks.settle(self._grace)
        await self._tasks.aclose()

    async def start(self, work: Work) -> bool:
        """Begin; the response is stored and the job is queued when this returns.

        False, and nothing has begun, if the id is taken: to open the job of another request would
        end that one's stream. Raises what Owner.open raises, and InvalidRequestError for a response
        that is too large.
        """
        run = _Run(self._store, work)
        if not await run.create():
            return False
        try:
            async with contextlib.AsyncExitStack() as stack:
                reader = await stack.enter_async_context(opened(self._owner, [work.job]))
                await run.begin(self._owner.api)
                handed_over = stack.pop_all()
        except BaseException:
            await asyncio.shield(self._store.delete(work.tenant, work.stored.id))
            raise
        name = f"response {work.stored.id}"
        self._tasks.start(self._follow(run, reader, handed_over), name)
        return True

    @staticmethod
    async def _follow(run: _Run, reader: Reader, stack: contextlib.AsyncExitStack) -> None:
        async with stack:
            await run.follow(reader)


class _Run:
    """One response on its way into the store."""

    def __init__(self, store: ResponseStore, work: Work) -> None:
        self._store = store
        self._work = work
        self._events = ResponseEvents(work.answer)
        self._frames: list[bytes] = []  # not written yet
        self._fields: dict[str, str] = {}  # not written yet

    async def create(self) -> bool:
        """Store the response, which nobody owns before its job is open; False if it is there."""
        opening = replace(self._work.stored, api="", end_by=int(time.time() + _OPENING))
        return await self._store.create(self._work.tenant, opening)

    async def begin(self, api: str) -> None:
        """Write who owns it, and its first events."""
        self._frames = self._events.begin()
        self._fields = {"api": api, "end_by": str(self._work.stored.end_by)}
        await self._write()

    async def follow(self, reader: Reader) -> None:
        """Write what happens, to the end."""
        try:
            if await self._relay(reader):
                await self._end(None)
        except QueueServeError as error:
            await self._end(error)
        except asyncio.CancelledError:
            await self._end(ServerClosingError("The server was shut down."))
            raise
        except Exception:
            log.exception("response %s failed", self._work.stored.id)
            await self._end(QueueServeError("The server failed."))

    async def _relay(self, reader: Reader) -> bool:
        """Write the events; False if nobody wants them any more."""
        while batch := await reader.read():
            if any(isinstance(event, Started) for _, events in batch for event in events):
                self._set("in_progress", None)
            self._frames += self._events.frames(batch)
            try:
                if not await self._write():
                    return False
            except RedisUnavailableError as error:  # they go with the next ones
                log.debug("response %s: %s", self._work.stored.id, error.message)
        return True

    async def _end(self, error: QueueServeError | None) -> None:
        """Write the end; as long as Redis is away, try again."""
        self._frames.append(self._events.failure(error) if error else self._events.end())
        self._set("failed" if error else None, error)
        while time.time() < self._work.stored.end_by:  # after that it has failed in any case
            try:
                await self._write()
            except RedisUnavailableError:
                await asyncio.sleep(_RETRY)
            else:
                return

    def _set(self, status: Status | None, error: QueueServeError | None) -> None:
        response = self._work.answer.response(status, error)
        body = orjson.dumps(response).decode()
        self._fields = {"status": response["status"], "response": body}

    async def _write(self) -> bool:
        written = await self._store.write(
            self._work.tenant,
            self._work.stored.id,
            first=self._events.number - len(self._frames),
            frames=self._frames,
            fields=self._fields,
        )
        self._frames, self._fields = [], {}
        return written
