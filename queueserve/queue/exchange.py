"""Commands to Redis below the client's own layer: many in one write, their answers in one read.

What the client library does around each command takes longer than Redis does for it, so the calls
that come with every request do without.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from hiredis import pack_command
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, ResponseError

from queueserve.queue.connection import ANSWER_TIMEOUT
from queueserve.queue.tasks import end
from queueserve.queue.wire import Plug, Wire

Command: TypeAlias = tuple[str | bytes | int | float, ...]

CALL_TIMEOUT = ANSWER_TIMEOUT + 1.0
"""Seconds in which a connection must be there, and then all answers to one write."""
_MOST = 256  # commands in one write
_MOST_BYTES = 1 << 20  # of them, but for one that is larger: all in a write share its time


def pack(command: Command) -> bytes:
    """The bytes of a command on the wire."""
    packed: bytes = pack_command(command)  # type: ignore[arg-type] # its stub means one of them
    return packed


class _Exchange:
    """Commands that leave together, and what has been answered to them so far."""

    __slots__ = ("answers", "commands", "complete")

    def __init__(self, commands: Sequence[bytes], complete: asyncio.Future[list[Any]]) -> None:
        self.commands = commands
        self.complete = complete
        self.answers: list[Any] = []


class Line:
    """Sends commands of many tasks over one connection of a client, which it keeps.

    What comes up while some are on their way leaves together. There is no timer: a command that is
    alone leaves in the next turn of the event loop. As long as Redis answers the line moves,
    however long it is; when it does not, all in line hear of it. `longer`: seconds that its
    commands may block beyond CALL_TIMEOUT.
    """

    def __init__(self, redis: Redis, *, longer: float = 0.0) -> None:
        self._plug = Plug(redis)
        self._longer = longer
        self._wire: Wire | None = None
        self._waiting: deque[_Exchange] = deque()
        self._sent: deque[_Exchange] = deque()
        self._late: asyncio.TimerHandle | None = None  # of what was sent
        self._moving = False  # a send is due, its answers are, or a connection is being opened
        self._opening: asyncio.Task[None] | None = None

    async def call(self, *command: str | bytes | float) -> Any:
        """Send a command and wait for its answer. Raises TimeoutError, RedisError or OSError."""
        (answer,) = await self.exchange([pack(command)])
        if isinstance(answer, ResponseError):
            raise answer
        return answer

    async def exchange(self, commands: Sequence[bytes]) -> list[Any]:
        """Send packed commands; the answer of each, a ResponseError for one refused.

        Raises TimeoutError, RedisError or OSError if the connection fails; nobody knows then which
        of them ran.
        """
        if not commands:
            return []
        loop = asyncio.get_running_loop()
        exchange = _Exchange(commands, loop.create_future())
        self._waiting.append(exchange)
        if not self._moving:
            self._moving = True
            loop.call_soon(self._send)
        return await exchange.complete

    async def aclose(self) -> None:
        """Give the connection back to the client; what waits or is on its way fails."""
        closed = RedisConnectionError("the line was closed")
        _fail(self._waiting, closed)
        if self._opening is not None:
            await end({self._opening})
            self._opening = None
            self._send()  # what has come meanwhile, or else it stands still
        if self._wire is not None:
            self._wire.close(closed)
        await self._plug.unplug()

    def _send(self) -> None:
        """Send what waits, as much as may leave together; stop where nothing does."""
        while self._waiting and self._waiting[0].complete.done():
            self._waiting.popleft()  # nobody waits for it any more
        self._moving = bool(self._waiting)
        if not self._waiting:
            return
        loop = asyncio.get_running_loop()
        if self._wire is None or not self._wire.open:
            self._opening = loop.create_task(self._open())
            return
        self._late = loop.call_later(CALL_TIMEOUT + self._longer, self._time_out)
        self._wire.write(b"".join(self._next()))

    def _next(self) -> Iterable[bytes]:
        """Take from the line what leaves together."""
        size = count = 0
        commands: list[bytes] = []
        while self._waiting:
            exchange = self._waiting[0]
            size += sum(map(len, exchange.commands))
            count += len(exchange.commands)
            if commands and (size > _MOST_BYTES or count > _MOST):
                break
            self._waiting.popleft()
            if not exchange.complete.done():
                self._sent.append(exchange)
                commands += exchange.commands
        return commands

    async def _open(self) -> None:
        try:
            async with asyncio.timeout(CALL_TIMEOUT):
                self._wire = await self._plug.wire(self._received, self._lost)
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            _fail(self._waiting, error)
        self._opening = None
        self._send()

    # What comes of it

    def _received(self, answer: Any) -> None:
        if not self._sent:
            assert self._wire  # noqa: S101 - it has just received
            self._wire.close(InvalidResponse("an answer to nothing"))
            return
        exchange = self._sent[0]
        exchange.answers.append(answer)
        if len(exchange.answers) < len(exchange.commands):
            return
        self._sent.popleft()
        if not exchange.complete.done():
            exchange.complete.set_result(exchange.answers)
        if not self._sent:
            self._settled()

    def _lost(self, reason: Exception) -> None:
        if self._sent:
            _fail(self._sent, reason)
            self._settled()

    def _time_out(self) -> None:
        assert self._wire  # noqa: S101 - something was sent
        error = TimeoutError("no answer")
        _fail(self._waiting, error)
        self._wire.close(error)

    def _settled(self) -> None:
        assert self._late  # noqa: S101 - set when it was sent
        self._late.cancel()
        self._send()


def _fail(exchanges: deque[_Exchange], error: Exception) -> None:
    while exchanges:
        exchange = exchanges.popleft()
        if not exchange.complete.done():
            exchange.complete.set_exception(error)
