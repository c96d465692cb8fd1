"""The two ways to answer a request that generates: in one piece, or as a stream."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeAlias

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from queueserve.api.chunked import chunked_body
from queueserve.api.disconnect import Client, ServerClosingError
from queueserve.api.errors import log_failure
from queueserve.api.generation import Batch, Reader, beginning, opened
from queueserve.api.relay import Relay
from queueserve.api.sse import EventStream
from queueserve.errors import QueueServeError, RedisUnavailableError
from queueserve.protocol import Job
from queueserve.queue.owner import Owner
from queueserve.queue.producer import Place

log = logging.getLogger(__name__)

_TELL_EVERY = 1.0  # seconds between comments on the place in the queue


Keep: TypeAlias = Callable[[QueueServeError | None], Awaitable[None]]
"""Called when an answer has ended, with the error that it ended with, before its client hears."""


async def _keep_nothing(_error: QueueServeError | None) -> None:
    pass


class Whole(Protocol):
    """Renders an answer in one piece."""

    def add(self, batch: Batch) -> None:
        """Take events in."""

    def body(self) -> bytes:
        """Return the JSON of the answer, once every job has finished."""


class Stream(Protocol):
    """Renders the events of a stream, in the dialect of its endpoint."""

    keep_alive: bytes
    """Sent when nothing else was sent for a while."""

    def render(self, batch: Batch) -> bytes:
        """Return the frames for new events."""

    def end(self) -> bytes:
        """Return the frames after the last event."""

    def failure(self, error: QueueServeError) -> bytes:
        """Return the frames that end the stream with a failure."""


class WholeAnswer(Response):
    """Runs the jobs, then answers. Any failure is an HTTP error."""

    def __init__(
        self, owner: Owner, jobs: Sequence[Job], whole: Whole, *, keep: Keep = _keep_nothing
    ) -> None:
        super().__init__()
        self._owner = owner
        self._jobs = jobs
        self._whole = whole
        self._keep = keep

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, unless the client goes away first: that cancels the jobs."""
        await Client(scope, receive).serve(self._answer(scope, receive, send))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with opened(self._owner, self._jobs) as reader:
            while batch := await reader.read():
                self._whole.add(batch)
            position = _position(reader)
        await self._keep(None)
        response = Response(self._whole.body(), media_type="application/json")
        response.raw_headers.append(position)
        await response(scope, receive, send)


class StreamAnswer(Response):
    """Answers while the jobs run.

    Until every job has been accepted, a failure is an HTTP error. After that it is an event of the
    stream, and its last: a stream that ends without its last event and without an error was cut
    off. Each prompt has `choices` jobs; `keep_alive` is in seconds. With `tells_position` the
    answer begins at once, and comments tell the place in the queue until the first event.
    """

    def __init__(
        self,
        owner: Owner,
        jobs: Sequence[Job],
        events: Stream,
        *,
        choices: int = 1,
        keep_alive: float,
        tells_position: bool = False,
        keep: Keep = _keep_nothing,
    ) -> None:
        super().__init__()
        self._owner = owner
        self._jobs = jobs
        self._events = events
        self._choices = choices
        self._keep_alive = keep_alive
        self._tells_position = tells_position
        self._keep = keep

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, unless the client goes away first: that cancels the jobs."""
        client = Client(scope, receive)
        await client.serve(self._answer(scope, send, client))

    async def _answer(self, scope: Scope, send: Send, client: Client) -> None:
        events, request_id = self._events, scope["state"]["request_id"]
        last = b""  # frames that leave together with the end of the answer
        async with opened(self._owner, self._jobs) as reader:
            batch: Batch = []
            if not self._tells_position:
                batch = await beginning(reader, jobs=len(self._jobs), choices=self._choices)
            async with EventStream(
                send,
                interval=self._keep_alive,
                keep_alive=events.keep_alive,
                headers=[_position(reader)],
                body=chunked_body(scope),
            ) as stream:
                try:
                    if self._tells_position:
                        batch = await self._told(reader, stream)
                    last = await self._relay(reader, stream, batch)
                    await self._keep(None)
                    last += events.end()
                except QueueServeError as error:
                    log_failure(request_id, error)
                    last += await self._failure(error)
                except asyncio.CancelledError:
                    if client.gone:
                        raise
                    last += await self._failure(ServerClosingError("The server is shutting down."))
                except Exception:
                    log.exception("request %s failed", request_id)
                    last += await self._failure(QueueServeError("The server failed."))
        await stream.end(last)

    async def _relay(self, reader: Reader, stream: EventStream, batch: Batch) -> bytes:
        """Write `batch` and what follows it, but for the last frames: they are returned."""
        render, only = self._events.render, reader.only
        frames = render(batch)
        if only is not None and only.over:
            return frames
        await stream.write(frames)
        if only is not None:
            return await Relay(only, render, stream, self._owner.turn).run()
        while batch := await reader.read():
            if frames := render(batch):
                await stream.write(frames)
        return b""

    async def _failure(self, error: QueueServeError) -> bytes:
        await self._keep(error)
        return self._events.failure(error)

    async def _told(self, reader: Reader, stream: EventStream) -> Batch:
        """Tell the client where it stands until there is something to read."""
        await stream.write(b"")  # the head
        while True:
            with contextlib.suppress(RedisUnavailableError):  # the reader hears of it, if it lasts
                if place := await self._owner.place(self._jobs):
                    await stream.write(_comment(place))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TELL_EVERY):
                    return await reader.read()


def _position(reader: Reader) -> tuple[bytes, bytes]:
    return (b"x-queueserve-queue-position", b"%d" % reader.position)


def _comment(place: Place) -> bytes:
    eta = b"" if place.wait is None else b" eta=%.1fs" % place.wait
    return b": queued position=%d%b\n\n" % (place.position, eta)
