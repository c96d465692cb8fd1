"""Clients that write down what they see, and say at once what must never be seen."""

from __future__ import annotations

import asyncio
import json
import random
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from harness.catalogue import Ask
from harness.wire import Answer, Events, asked

_ON_ITS_WAY = 60.0  # seconds beyond the request timeout: what links and stopped servers hold up
_SMALL_WINDOW = 16_384  # bytes
_LEAVES_AFTER = 0.2  # seconds, for an answer in one piece
GIVE_UP_AFTER = 120.0  # seconds of retries; a Redis that hangs, twice in a row, is shorter
RETRIED = {409, 429, 503, 504}
_FINAL = {"vanished", "worker_crashed"}  # a job that has lost its last worker stays failed
# How a request may end that was disturbed. No timeout is among them, nor `no_worker`, nor
# `worker_lost`: queues are short and workers start again, so each would be a job that was lost.
DISTURBED = {"redis_unavailable", "server_closing", "server_expired", "worker_crashed"}
REFUSED = {"rate_limit_exceeded"}  # of an overload


@dataclass
class Attempt:
    """One request on one connection, as its client saw it."""

    api: str
    began: float
    ended: float = 0.0
    reply: str = ""  # the answer's id
    how: str = ""  # done, vanished, cut, refused (no connection), or the code of an error
    status: int = 0
    choices: int = 1
    poison: bool = False  # its prompt breaks an engine
    retry_after: float = 0.0  # seconds, as the server says
    pieces: list[float] = field(default_factory=list)  # when each piece came


@dataclass(frozen=True)
class Manner:
    """How a client behaves."""

    key: bool = False  # sends an Idempotency-Key and tries again until it has its answer
    vanish_at: int = 0  # goes away after so many pieces
    pause_at: int = 0  # reads nothing for a while after so many pieces
    pause: float = 0.0  # seconds
    sips: float = 0.0  # seconds that it reads nothing after each piece; takes little in before

    @property
    def name(self) -> str:
        if self.key:
            return "tries again with its Idempotency-Key"
        if self.vanish_at:
            return "vanishes"
        return "reads slowly" if self.pause_at else "reads to the end"


class Violation(Exception):  # noqa: N818 - a finding
    """Something that must never be seen."""


@dataclass
class _Text:
    """The choices of one answer, compared with what is expected as they grow."""

    ask: Ask
    texts: dict[int, str] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)

    def add(self, choice: dict) -> None:
        index = choice["index"]
        if index in self.reasons:
            raise Violation(f"choice {index} goes on after its end: {choice}")
        delta = choice.get("delta") or choice.get("message")
        text = delta.get("content") if delta is not None else choice.get("text")
        self.texts[index] = self.texts.get(index, "") + (text or "")
        if choice["finish_reason"]:
            self.reasons[index] = choice["finish_reason"]
        self._compare(index)

    def _compare(self, index: int) -> None:
        if not self.ask.expected:
            return
        text, reason = self.ask.expected[index]
        have, ended = self.texts[index], self.reasons.get(index)
        if not text.startswith(have) or (ended and (have, ended) != (text, reason)):
            raise Violation(f"choice {index}: {have!r} ({ended}), not {text!r} ({reason})")

    @property
    def whole(self) -> bool:
        return len(self.reasons) == self.ask.choices


class Client:
    """Sends requests to the API servers behind `ports` (name → port), and keeps its log."""

    def __init__(
        self,
        ports: Callable[[], dict[str, int]],
        draw: random.Random,
        *,
        within: float = 60.0,
        expected: AbstractSet[str] = frozenset(DISTURBED),
    ) -> None:
        """`within`: the servers' request timeout. `expected`: codes of errors that may be seen."""
        self.ports = ports
        self.draw = draw
        self.attempts: list[Attempt] = []
        self.violations: list[str] = []
        self.outcomes: Counter[str] = Counter()
        self.waits: list[float] = []  # seconds from a request's first attempt to its last one
        self._within = within + _ON_ITS_WAY
        self._expected = expected

    async def request(self, ask: Ask, manner: Manner = Manner()) -> Attempt:
        """Send it, and again while it is refused, or while its key allows it."""
        headers = {"idempotency-key": str(uuid.UUID(int=self.draw.getrandbits(128)))}
        began = time.monotonic()
        pause = 0.05
        while True:
            attempt = await self.attempt(ask, manner, headers if manner.key else {})
            refused = attempt.how == "refused" or attempt.status in RETRIED
            again = refused or (manner.key and attempt.how not in ("done", "vanished"))
            if not again or attempt.how in _FINAL:
                break
            if time.monotonic() > began + GIVE_UP_AFTER:
                self.violate(attempt, f"no answer after {GIVE_UP_AFTER} s of retries")
                break
            await asyncio.sleep(self.draw.uniform(pause / 2, pause))
            pause = min(2 * pause, 2.0)
        self.outcomes[attempt.how] += 1
        self.waits.append(attempt.began - began)
        return attempt

    async def attempt(
        self, ask: Ask, manner: Manner, headers: dict[str, str], *, avoid: str = ""
    ) -> Attempt:
        """Send it once, to any API server but `avoid`."""
        ports = sorted(self.ports().items())
        name, port = self.draw.choice([each for each in ports if each[0] != avoid])
        attempt = Attempt(name, time.monotonic(), choices=ask.choices, poison=ask.breaks)
        self.attempts.append(attempt)
        leaves = manner.vanish_at > 0 and not ask.streams
        try:
            async with asyncio.timeout(_LEAVES_AFTER if leaves else self._within):
                await self._attempt(ask, manner, headers, attempt, port)
        except TimeoutError:
            attempt.how = "vanished" if leaves else "hangs"
            if not leaves:
                self.violate(attempt, f"no end within {self._within} s")
        except ConnectionRefusedError:
            attempt.how = "refused"
        except (OSError, EOFError):
            attempt.how = "cut" if attempt.status == 200 else "refused"
        except Violation as violation:
            attempt.how = "violation"
            self.violate(attempt, str(violation))
        attempt.ended = time.monotonic()
        return attempt

    def violate(self, attempt: Attempt, what: str) -> None:
        self.violations.append(f"request {attempt.reply or '?'} at {attempt.api}: {what}")

    async def _attempt(
        self, ask: Ask, manner: Manner, headers: dict[str, str], attempt: Attempt, port: int
    ) -> None:
        window = _SMALL_WINDOW if manner.sips else 0
        async with asked(port, ask.path, ask.payload, headers, window=window) as answer:
            attempt.status = answer.status
            attempt.retry_after = float(answer.headers.get("retry-after", 0))
            if answer.status != 200:
                error = json.loads(await answer.body())["error"]
                self._ended_by(attempt, ask, error)
            elif ask.streams:
                await self._stream(answer, ask, manner, attempt)
            else:
                text = _Text(ask)
                reply = json.loads(await answer.body())
                attempt.reply = reply["id"]
                for choice in reply["choices"]:
                    text.add(choice)
                self._done(attempt, text)

    async def _stream(self, answer: Answer, ask: Ask, manner: Manner, attempt: Attempt) -> None:
        text, events, seen = _Text(ask), Events(), 0
        async for piece in answer.pieces():
            attempt.pieces.append(time.monotonic())
            for data in events.feed(piece):
                self._event(data, ask, text, attempt)
                seen += 1
                if seen == manner.vanish_at:
                    attempt.how = "vanished"
                    return
                if seen == manner.pause_at:
                    await asyncio.sleep(manner.pause)
            if manner.sips:
                await asyncio.sleep(manner.sips)
        if not attempt.how:
            attempt.how = "cut"

    def _event(self, data: bytes, ask: Ask, text: _Text, attempt: Attempt) -> None:
        if attempt.how:
            raise Violation(f"the stream goes on after its end: {data!r}")
        if data == b"[DONE]":
            self._done(attempt, text)
            return
        chunk = json.loads(data)
        if "error" in chunk:
            self._ended_by(attempt, ask, chunk["error"])
            return
        if attempt.reply not in ("", chunk["id"]):
            raise Violation(f"two ids in one stream: {attempt.reply} and {chunk['id']}")
        attempt.reply = chunk["id"]
        for choice in chunk["choices"]:
            text.add(choice)

    def _done(self, attempt: Attempt, text: _Text) -> None:
        attempt.how = "done"
        if text.ask.breaks:
            raise Violation("a job that breaks its engine was answered")
        if not text.whole:
            raise Violation(f"an end without an end of every choice: {text.reasons}")
        if not text.ask.expected:
            found = {index: (text.texts[index], why) for index, why in text.reasons.items()}
            text.ask.expected = found

    def _ended_by(self, attempt: Attempt, ask: Ask, error: dict) -> None:
        attempt.how = code = error["code"]
        allowed = self._expected | ({"engine_error"} if ask.breaks else set())
        if code == "cancelled" and attempt.status == 409:
            return  # a retry with the same key has taken its place
        if code not in allowed or "continued exactly" in error["message"]:
            raise Violation(f"{attempt.status} {code}: {error['message']}")


async def crowd(client: Client, size: int, work: Iterable[tuple[Ask, Manner]]) -> None:
    """Send all of `work`, `size` requests at a time."""
    waiting = iter(work)

    async def one() -> None:
        for ask, manner in waiting:
            await client.request(ask, manner)

    async with asyncio.TaskGroup() as group:
        for _ in range(size):
            group.create_task(one())
