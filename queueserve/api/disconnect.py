"""A request's client: while it is there, its request is worked on."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.types import Receive

from queueserve.errors import QueueServeError


class ServerClosingError(QueueServeError):
    """The API server stops, and its grace time is over."""

    code = "server_closing"


class Client:
    """Watches a connection whose request has been read."""

    def __init__(self, receive: Receive) -> None:
        self.gone = False
        self._receive = receive

    async def serve(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work`, and cancel it at once when the client disconnects.

        A server at the end of its grace time cancels, too; then `gone` is False, so that work which
        has begun an answer can end it properly. Raises what `work` raises, or ServerClosingError.
        `work` must send the end of its answer last: a client may disconnect once it has it.
        """
        working = asyncio.current_task()
        assert working is not None  # noqa: S101 - we run in it
        watching = asyncio.create_task(self._disconnected(working))
        try:
            await work
        except asyncio.CancelledError:
            if not self.gone:
                raise ServerClosingError("The server is shutting down.") from None
            working.uncancel()
        finally:
            watching.cancel()

    async def _disconnected(self, working: asyncio.Task[Any]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        working.cancel()
