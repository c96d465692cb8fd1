"""The two ways to answer a request that generates: in one piece, or as a stream."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from queueserve.api.disconnect import Client, ServerClosingError
from queueserve.api.generation import Reader, beginning, opened
from queueserve.api.render import Chunks, Reply, Whole
from queueserve.api.sse import EventStream, error_frame
from queueserve.errors import QueueServeError
from queueserve.protocol import Job
from queueserve.queue.owner import Owner

log = logging.getLogger(__name__)


class WholeAnswer(Response):
    """Runs the jobs, then answers. Any failure is an HTTP error."""

    def __init__(self, owner: Owner, jobs: Sequence[Job], reply: Reply) -> None:
        super().__init__()
        self._owner = owner
        self._jobs = jobs
        self._reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, unless the client goes away first: that cancels the jobs."""
        await Client(receive).serve(self._answer(scope, receive, send))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        whole = Whole(self._reply)
        async with opened(self._owner, self._jobs) as reader:
            while batch := await reader.read():
                whole.add(batch)
        await Response(whole.body(), media_type="application/json")(scope, receive, send)


class StreamAnswer(Response):
    """Answers while the jobs run.

    Until every job has been accepted, a failure is an HTTP error. After that it is an event of the
    stream, and its last: a stream that ends without `[DONE]` and without an error was cut off.
    """

    def __init__(
        self, owner: Owner, jobs: Sequence[Job], reply: Reply, *, keep_alive: float
    ) -> None:
        super().__init__()
        self._owner = owner
        self._jobs = jobs
        self._reply = reply
        self._keep_alive = keep_alive

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, unless the client goes away first: that cancels the jobs."""
        client = Client(receive)
        await client.serve(self._answer(send, client))

    async def _answer(self, send: Send, client: Client) -> None:
        chunks = Chunks(self._reply)
        async with opened(self._owner, self._jobs) as reader:
            batch = await beginning(reader, jobs=len(self._jobs), choices=self._reply.choices)
            async with EventStream(send, keep_alive=self._keep_alive) as stream:
                try:
                    await stream.write(chunks.render(batch))
                    await _relay(reader, chunks, stream)
                except QueueServeError as error:
                    await stream.write(error_frame(error))
                except asyncio.CancelledError:
                    if client.gone:
                        raise
                    closing = ServerClosingError("The server is shutting down.")
                    await stream.write(error_frame(closing))
                except Exception:
                    log.exception("a stream failed")
                    await stream.write(error_frame(QueueServeError("The server failed.")))
        await stream.end()


async def _relay(reader: Reader, chunks: Chunks, stream: EventStream) -> None:
    while batch := await reader.read():
        if frames := chunks.render(batch):
            await stream.write(frames)
    await stream.write(chunks.end())
