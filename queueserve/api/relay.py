"""From a job's stream to its client, without a task that wakes up for every token."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from queueserve.api.generation import Batch
from queueserve.api.sse import EventStream
from queueserve.queue.stream import JobStream
from queueserve.queue.turn import Turn


class Relay:
    """Renders what a job's stream has and writes it, one write for all that came together.

    While the client is behind nothing is taken from the job's stream: what has come by then is
    written at once when the client has caught up. `turn` is shared by all relays.
    """

    def __init__(
        self, stream: JobStream, render: Callable[[Batch], bytes], out: EventStream, turn: Turn
    ) -> None:
        self._stream = stream
        self._render = render
        self._out = out
        self._soon = turn.soon
        self._over: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._scheduled = False

    async def run(self) -> bytes:
        """Return the last frames, still to be written. Raises the QueueServeError of the job."""
        self._out.caught_up = self._look
        self._stream.watch(self._look)
        self._look()
        return await self._over

    def _look(self) -> None:
        """Pass on what is there, once everything that came in the same message is."""
        if not self._scheduled:
            self._scheduled = True
            self._soon(self._pass_on)

    def _pass_on(self) -> None:
        self._scheduled = False
        try:
            while not self._out.busy and not self._over.done():
                batch = self._stream.take()
                if not batch:
                    return
                frames = self._render([(0, batch)])
                if self._stream.over:
                    self._over.set_result(frames)
                elif frames:
                    self._out.push(frames)
        except StopAsyncIteration:
            self._over.set_result(b"")
        except Exception as error:  # noqa: BLE001 - raised by `run`
            self._over.set_exception(error)
