"""A request's client: while it is there, its request is worked on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from starlette.types import Receive, Scope

from queueserve.api.chunked import watch
from queueserve.errors import QueueServeError


class ServerClosingError(QueueServeError):
    """The API server stops, and its grace time is over."""

    code = "server_closing"


class Client:
    """Watches a connection whose request has been read."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.gone = False
        self._scope = scope
        self._receive = receive

    async def serve(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work`, and cancel it at once when the client disconnects.

        A server at the end of its grace time cancels, too; then `gone` is False, so that work which
        has begun an answer can end it properly. Raises what `work` raises, or ServerClosingError.
        `work` must send the end of its answer last: a client may disconnect once it has it.
        """
        working = asyncio.current_task()
        assert working is not None  # noqa: S101 - we run in it
        stop = self._watch(working)
        try:
            await work
        except asyncio.CancelledError:
            if not self.gone:
                raise ServerClosingError("The server is shutting down.") from None
            working.uncancel()
        finally:
            stop()

    def _watch(self, working: asyncio.Task[Any]) -> Callable[[], object]:
        """Cancel `working` when the client disconnects; return what ends the watch."""

        def leave() -> None:
            self.gone = True
            working.cancel()

        stop = watch(self._scope, leave)
        return stop or asyncio.create_task(self._disconnected(leave)).cancel

    async def _disconnected(self, leave: Callable[[], None]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        leave()
