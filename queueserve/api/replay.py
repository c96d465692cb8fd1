"""The stream of a response that runs in the background, from any of its events on."""

from __future__ import annotations

import asyncio
import logging

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from queueserve.api.disconnect import Client, ServerClosingError
from queueserve.api.errors import log_failure
from queueserve.api.render_responses import LAST_EVENTS, ending_frame, error_frame
from queueserve.api.sse import EventStream
from queueserve.api.stored import Responses
from queueserve.errors import QueueServeError
from queueserve.queue.responses import UNENDED, ResponseLog, StoredResponse

log = logging.getLogger(__name__)

_LOOK = 2.0  # seconds of silence after which to look whether the response goes on at all


class ReplayAnswer(Response):
    """Answers with the events after number `after`, and follows them to the end.

    Who leaves does not stop the response.
    """

    def __init__(
        self,
        responses: Responses,
        tenant: str,
        stored: StoredResponse,
        *,
        after: int,
        keep_alive: float,
    ) -> None:
        super().__init__()
        self._responses = responses
        self._tenant = tenant
        self._response = stored.id
        self._ended = stored.status not in UNENDED
        self._last = after  # the number of the last event that was sent
        self._keep_alive = keep_alive

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, until the client goes away."""
        client = Client(scope, receive)
        await client.serve(self._answer(send, client, scope["state"]["request_id"]))

    async def _answer(self, send: Send, client: Client, request_id: str) -> None:
        async with (
            self._responses.store.log(self._tenant, self._response) as events,
            EventStream(send, interval=self._keep_alive) as stream,
        ):
            try:
                await self._follow(events, stream)
            except QueueServeError as error:
                log_failure(request_id, error)
                await stream.write(error_frame(self._last + 1, error))
            except asyncio.CancelledError:
                if client.gone:
                    raise
                closing = ServerClosingError("The server is shutting down.")
                await stream.write(error_frame(self._last + 1, closing))
            except Exception:
                log.exception("request %s failed", request_id)
                failed = QueueServeError("The server failed.")
                await stream.write(error_frame(self._last + 1, failed))
        await stream.end()

    async def _follow(self, events: ResponseLog, stream: EventStream) -> None:
        ended = self._ended
        while True:
            found = await events.after(self._last, wait=0.0 if ended else _LOOK)
            if found:
                self._last = found.last
                await stream.write(b"".join(found.frames))
                if found.frames[-1].startswith(LAST_EVENTS):
                    return
                continue
            stored = await self._responses.get(self._tenant, self._response)
            if ended:  # and there was nothing more to read
                last = ending_frame(self._last + 1, orjson.loads(stored.response))
                await stream.write(last)
                return
            ended = stored.status not in UNENDED
