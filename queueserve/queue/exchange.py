"""Commands to Redis below the client's own layer: many in one write, their answers in one read.

The client library opens and keeps the connections, so TLS, Sentinel and ACLs are its business as
everywhere. What it does around each command takes longer than Redis does for it, so the calls that
come with every request do without.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from hiredis import pack_command
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from queueserve.queue.connection import ANSWER_TIMEOUT

Command: TypeAlias = tuple[str | bytes | int | float, ...]

CALL_TIMEOUT = ANSWER_TIMEOUT + 1.0
"""Seconds for a call with the wait for a free connection."""
_MOST = 256  # commands in one write
_MOST_BYTES = 1 << 20  # of them, but for one that is larger: all in a write share its time


async def exchange(redis: Redis, commands: Sequence[bytes], *, longer: float = 0.0) -> list[Any]:
    """Send packed commands in one write; the answer of each, a ResponseError for one refused.

    It takes CALL_TIMEOUT seconds at most, and those `longer` that a command may block. Raises
    TimeoutError, RedisError or OSError if the
    connection fails; nobody knows then which of them ran.
    """
    async with asyncio.timeout(CALL_TIMEOUT + longer):
        connection = await redis.connection_pool.get_connection()
        bound, connection.socket_timeout = connection.socket_timeout, None  # ours counts for all
        try:
            await connection.send_packed_command(b"".join(commands))
            return [await _answer(connection) for _ in commands]
        finally:
            connection.socket_timeout = bound
            await redis.connection_pool.release(connection)


async def _answer(connection: AbstractConnection) -> Any:
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error


def pack(command: Command) -> bytes:
    """The bytes of a command on the wire."""
    packed: bytes = pack_command(command)  # type: ignore[arg-type] # its stub means one of them
    return packed


class _Call(NamedTuple):
    command: bytes
    answer: asyncio.Future[Any]


class Calls:
    """Sends commands of many tasks; what comes up while some are on their way leaves together.

    There is no timer: a command that is alone leaves in the next turn of the event loop. As long as
    Redis answers the line moves, however long it is; when it does not, all in line hear of it.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._waiting: list[_Call] = []
        self._sending: asyncio.Task[None] | None = None

    async def call(self, *command: str | bytes | float) -> Any:
        """Send a command and wait for its answer. Raises TimeoutError, RedisError or OSError."""
        loop = asyncio.get_running_loop()
        call = _Call(pack(command), loop.create_future())
        self._waiting.append(call)
        if self._sending is None:
            self._sending = loop.create_task(self._send())
        return await call.answer

    async def _send(self) -> None:
        try:
            while self._waiting:
                await self._exchange(self._next())
        finally:
            self._sending = None

    def _next(self) -> list[_Call]:
        """Take from the line what leaves together."""
        size = count = 0
        for call in self._waiting[:_MOST]:
            size += len(call.command)
            if count and size > _MOST_BYTES:
                break
            count += 1
        calls, self._waiting = self._waiting[:count], self._waiting[count:]
        return [call for call in calls if not call.answer.done()]

    async def _exchange(self, calls: list[_Call]) -> None:
        if not calls:
            return
        try:
            answers = await exchange(self._redis, [call.command for call in calls])
        except (TimeoutError, RedisTimeoutError) as error:
            calls, self._waiting = calls + self._waiting, []
            answers = [error] * len(calls)
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            answers = [error] * len(calls)
        for call, answer in zip(calls, answers, strict=True):
            if call.answer.done():
                continue  # nobody waits any more
            if isinstance(answer, Exception):
                call.answer.set_exception(answer)
            else:
                call.answer.set_result(answer)
