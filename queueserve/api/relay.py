"""From a job's stream to its client, without a task that wakes up for every token."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

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
        self._turn = turn
        self._soon = partial(turn.soon, self._pass_on)  # once all of a message is there
        self._over: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def run(self) -> bytes:
        """Return the last frames, still to be written. Raises the QueueServeError of the job."""
        self._out.caught_up = self._soon
        self._stream.watch(self._soon)
        self._soon()
        return await self._over

    def _pass_on(self) -> None:
        out, stream = self._out, self._stream
        if out.busy or self._over.done():
            return
        try:
            frames = self._render([(0, stream.take())])
        except StopAsyncIteration:
            self._over.set_result(b"")
            return
        except Exception as error:  # noqa: BLE001 - raised by `run`
            self._over.set_exception(error)
            return
        if stream.ended and stream.over:
            self._over.set_result(frames)
            return
        if frames:
            self._turn.write(out.push, frames)
        if stream.ended:  # its error comes after what is there
            self._soon()
