"""Clients that ask one server, all in one process: closed loop, or a rate of their own."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import orjson

from queueserve.bench.answer import Answer
from queueserve.bench.connection import Connection, Endpoint
from queueserve.errors import QueueServeError

_NUMBER = "00000000"  # in the prompt of each request, so that no two are equal
_WORD = " word"


class LoadError(QueueServeError):
    """There is nothing to measure: no server, no model."""

    code = "load_error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to ask, how often, and by how many clients; times in seconds.

    With `rate` (requests/s) requests begin at random times of that average, whether others have
    ended or not, and their times count from then; at most `concurrency` are under way.
    Without it, each of `concurrency` clients asks again when it has its answer, after a random
    pause of up to `pause`.
    """

    url: str
    model: str | None = None  # None: the first one that the server lists
    api_key: str | None = None
    concurrency: int = 16
    requests: int | None = None  # in all
    duration: float | None = None  # no request begins later
    rate: float | None = None
    prompt_tokens: int = 32  # about: words
    max_tokens: int = 128
    stream: bool = True
    usage: bool = True  # ask for the server's own count of tokens
    pause: float = 0.0
    timeout: float = 600.0  # of one request


@dataclass(slots=True)
class Load:
    """All answers, and the time from the first request to the last answer."""

    answers: list[Answer] = field(default_factory=list)
    began: float = 0.0
    ended: float = 0.0


class Generator:
    """Runs a plan."""

    def __init__(self, plan: Plan, *, seed: int | None = None) -> None:
        self._plan = plan
        self._random = random.Random(seed)  # noqa: S311 - pauses, no secrets
        try:
            self._endpoint = Endpoint(plan.url, "chat/completions", api_key=plan.api_key)
        except ValueError as error:
            raise LoadError(str(error)) from error
        self._left = plan.requests
        self._until = float("inf")
        self._idle: list[Connection] = []
        self._number = 0
        self.load = Load()

    async def run(self, ended: Callable[[Answer], None] | None = None) -> Load:
        """Ask, and return what came; `ended` is called after every answer. Raises LoadError."""
        self._ended = ended or (lambda _: None)
        head, self._tail = self._body(self._plan.model or await self._first_model())
        self._head = head
        self.load.began = time.perf_counter()
        if self._plan.duration is not None:
            self._until = self.load.began + self._plan.duration
        try:
            if self._plan.rate:
                await self._open_loop(self._plan.rate)
            else:
                async with asyncio.TaskGroup() as clients:
                    for _ in range(self._plan.concurrency):
                        clients.create_task(self._client())
        finally:
            for connection in self._idle:
                connection.close()
        self.load.ended = time.perf_counter()
        return self.load

    def _body(self, model: str) -> tuple[bytes, bytes]:
        plan = self._plan
        words = _WORD * max(0, plan.prompt_tokens - 1)
        body = {
            "model": model,
            "messages": [{"role": "user", "content": f"{_NUMBER}{words}"}],
            "max_tokens": plan.max_tokens,
            "temperature": 0,
            "stream": plan.stream,
            "ignore_eos": True,
        }
        if plan.stream and plan.usage:
            body["stream_options"] = {"include_usage": True}
        head, _, tail = orjson.dumps(body).partition(_NUMBER.encode())
        return head, tail

    def _next(self) -> bytes | None:
        """Return the next request; None after the last."""
        if self._left == 0 or time.perf_counter() >= self._until:
            return None
        if self._left is not None:
            self._left -= 1
        self._number += 1
        return self._endpoint.request(b"%b%08d%b" % (self._head, self._number, self._tail))

    async def _client(self) -> None:
        if self._plan.pause:  # clients do not begin in step, either
            await asyncio.sleep(self._random.uniform(0, self._plan.pause))
        while request := self._next():
            await self._ask(request, time.perf_counter())
            if self._plan.pause:
                await asyncio.sleep(self._random.uniform(0, self._plan.pause))

    async def _open_loop(self, rate: float) -> None:
        room = asyncio.Semaphore(self._plan.concurrency)
        due = time.perf_counter()

        async def one(request: bytes, began: float) -> None:
            async with room:
                await self._ask(request, began)

        async with asyncio.TaskGroup() as group:
            while request := self._next():
                group.create_task(one(request, due))
                due += self._random.expovariate(rate)
                await asyncio.sleep(max(0.0, due - time.perf_counter()))

    async def _ask(self, request: bytes, began: float) -> None:
        answer = Answer(began)
        try:
            async with self._connection() as connection:
                await connection.ask(request, answer, timeout=self._plan.timeout)
        except (OSError, TimeoutError) as error:
            answer.error = f"no connection: {error or type(error).__name__}"
            answer.ended = time.perf_counter()
            await asyncio.sleep(min(1.0, self._plan.timeout))  # or a dead server gets a storm
        self.load.answers.append(answer)
        self._ended(answer)

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        while self._idle and not self._idle[-1].open:
            self._idle.pop()
        connection = self._idle.pop() if self._idle else await Connection.connect(self._endpoint)
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        if connection.open:
            self._idle.append(connection)
        else:
            connection.close()

    async def _first_model(self) -> str:
        answer = Answer(time.perf_counter())
        try:
            async with self._connection() as connection:
                body = await connection.ask(self._endpoint.models, answer, timeout=10)
        except (OSError, TimeoutError) as error:
            raise LoadError(f"{self._plan.url} does not answer: {error}") from error
        try:
            return str(orjson.loads(body)["data"][0]["id"])
        except (ValueError, LookupError, TypeError):
            raise LoadError(f"{self._plan.url} lists no model: name one with --model") from None
