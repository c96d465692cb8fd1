"""From a job's stream to its client, without a task that wakes up for every token."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from queueserve.api.generation import Batch
from queueserve.api.sse import EventStream
from queueserve.queue.stream import JobStream


class Relay:
    """Renders what a job's stream has and writes it, one write for all that came together.

    While the client is behind nothing is taken from the job's stream: what has come by then is
    written at once when the client has caught up.
    """

    def __init__(
        self, stream: JobStream, render: Callable[[Batch], bytes], out: EventStream
    ) -> None:
        self._stream = stream
        self._render = render
        self._out = out
        self._loop = asyncio.get_running_loop()
        self._over = self._loop.create_future()
        self._scheduled = False

    async def run(self) -> None:
        """Return at the end of the stream. Raises the QueueServeError of the job."""
        self._stream.watch(self._look)
        self._look()
        await self._over

    def _look(self) -> None:
        """Pass on what is there, once everything that came in the same message is."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._pass_on)

    def _pass_on(self) -> None:
        self._scheduled = False
        try:
            while not self._out.busy and not self._over.done():
                batch = self._stream.take()
                if not batch:
                    return
                if frames := self._render([(0, batch)]):
                    self._out.push(frames, caught_up=self._look)
        except StopAsyncIteration:
            self._over.set_result(None)
        except Exception as error:  # noqa: BLE001 - raised by `run`
            self._over.set_exception(error)
