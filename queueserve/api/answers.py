"""The two ways to answer a request that generates: in one piece, or as a stream."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from queueserve.api.disconnect import Client, ServerClosingError
from queueserve.api.generation import Batch, Reader, beginning, opened
from queueserve.api.sse import EventStream
from queueserve.errors import QueueServeError
from queueserve.protocol import Job
from queueserve.queue.owner import Owner

log = logging.getLogger(__name__)


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

    def __init__(self, owner: Owner, jobs: Sequence[Job], whole: Whole) -> None:
        super().__init__()
        self._owner = owner
        self._jobs = jobs
        self._whole = whole

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, unless the client goes away first: that cancels the jobs."""
        await Client(receive).serve(self._answer(scope, receive, send))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with opened(self._owner, self._jobs) as reader:
            while batch := await reader.read():
                self._whole.add(batch)
        body = self._whole.body()
        await Response(body, media_type="application/json")(scope, receive, send)


class StreamAnswer(Response):
    """Answers while the jobs run.

    Until every job has been accepted, a failure is an HTTP error. After that it is an event of the
    stream, and its last: a stream that ends without its last event and without an error was cut
    off. Each prompt has `choices` jobs; `keep_alive` is in seconds.
    """

    def __init__(
        self,
        owner: Owner,
        jobs: Sequence[Job],
        events: Stream,
        *,
        choices: int = 1,
        keep_alive: float,
    ) -> None:
        super().__init__()
        self._owner = owner
        self._jobs = jobs
        self._events = events
        self._choices = choices
        self._keep_alive = keep_alive

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, unless the client goes away first: that cancels the jobs."""
        client = Client(receive)
        await client.serve(self._answer(send, client))

    async def _answer(self, send: Send, client: Client) -> None:
        events = self._events
        async with opened(self._owner, self._jobs) as reader:
            batch = await beginning(reader, jobs=len(self._jobs), choices=self._choices)
            async with EventStream(
                send, interval=self._keep_alive, keep_alive=events.keep_alive
            ) as stream:
                try:
                    await stream.write(events.render(batch))
                    await _relay(reader, events, stream)
                except QueueServeError as error:
                    await stream.write(events.failure(error))
                except asyncio.CancelledError:
                    if client.gone:
                        raise
                    closing = ServerClosingError("The server is shutting down.")
                    await stream.write(events.failure(closing))
                except Exception:
                    log.exception("a stream failed")
                    await stream.write(events.failure(QueueServeError("The server failed.")))
        await stream.end()


async def _relay(reader: Reader, events: Stream, stream: EventStream) -> None:
    while batch := await reader.read():
        if frames := events.render(batch):
            await stream.write(frames)
    await stream.write(events.end())
