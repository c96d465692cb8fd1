"""Stored responses: each belongs to a tenant, lives for a while, and all of them are bounded.

What a response holds is its owner's business: this store keeps text. One that runs in the
background also has a log of its events, which is read while it grows.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from redis.asyncio import Redis

from queueserve.errors import InvalidRequestError, QueueFullError
from queueserve.queue.connection import open_blocking_redis, translated
from queueserve.queue.exchange import CALL_TIMEOUT
from queueserve.queue.functions import Functions
from queueserve.queue.keys import Keys, checked_pool

UNENDED: Final = frozenset({"queued", "in_progress"})
_READ = 500  # events at once
_SOON = 5.0  # seconds; what runs has then perhaps ended


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredResponse:
    """A response, and what is needed to go on with it.

    `response` and `input` are JSON texts: the object as clients see it, and the list of its input
    items. `chain` are the ids of the responses that it goes on from, the first one first.
    """

    id: str
    status: str
    response: str
    input: str
    chain: tuple[str, ...] = ()
    digest: str = ""  # of the request's body, if a retry may ask for it
    # Of one that runs in the background:
    pool: str = ""
    job: str = ""
    api: str = ""  # the API server that owns it; none while its job is being opened
    end_by: int = 0  # Unix seconds; it must have ended by then

    @property
    def background(self) -> bool:
        """Whether it was made to go on without a reader."""
        return bool(self.job)

    @property
    def is_opening(self) -> bool:
        """Whether its job is being opened; if that fails, there never was such a response."""
        return self.background and not self.api and self.status in UNENDED


def _fields(stored: StoredResponse) -> dict[str, str]:
    return {
        "status": stored.status,
        "response": stored.response,
        "input": stored.input,
        "chain": " ".join(stored.chain),
        "digest": stored.digest,
        "pool": stored.pool,
        "job": stored.job,
        "api": stored.api,
        "end_by": str(stored.end_by),
    }


def _flat(fields: Mapping[str, str]) -> list[str]:
    return [text for pair in fields.items() for text in pair]


@dataclass(frozen=True, slots=True)
class Events:
    """Some events of a log: their frames, and the number of the last one."""

    frames: tuple[bytes, ...]
    last: int


class ResponseStore:
    """The stored responses. Every method raises RedisUnavailableError.

    `ttl` is in seconds, renewed with every write; `limit` bounds the bytes of all responses: past
    it, the tenant that has the most loses its oldest ones. One that runs stays, and grows.
    """

    def __init__(
        self, functions: Functions, keys: Keys, *, redis_url: str, ttl: float, limit: int
    ) -> None:
        self.enabled = ttl > 0
        self._functions = functions
        self._keys = keys
        self._stored = keys.stored
        self._redis_url = redis_url
        self._ttl_ms = int(ttl * 1000)
        self._limit = limit

    async def create(self, tenant: str, stored: StoredResponse) -> bool:
        """Store a new response; False if there is one of this id.

        Raises InvalidRequestError if it can never fit, QueueFullError if it cannot now.
        """
        answer = await self._call(
            "new", tenant, stored.id, self._ttl_ms, self._limit, *_flat(_fields(stored))
        )
        if answer == b"too_large":
            raise InvalidRequestError(
                f"This is too large to be stored: all stored responses together may have "
                f"{self._limit} bytes. Send store: false.",
                param="store",
            )
        if answer == b"full":
            raise QueueFullError(
                "The responses that run in the background take all the room for stored ones.",
                retry_after=_SOON,
            )
        return bool(answer == b"created")

    async def write(
        self,
        tenant: str,
        response: str,
        *,
        first: int = 0,
        frames: Sequence[bytes] = (),
        fields: Mapping[str, str] | None = None,
    ) -> bool:
        """Add events, numbered from `first` on, to a response that has not ended; set its fields.

        Events that are there already are skipped, so a write may be sent again. False if the
        response has ended, or is not there any more.
        """
        answer = await self._call(
            "write",
            *(tenant, response, self._ttl_ms, self._limit, first, len(frames)),
            *frames,
            *_flat(fields or {}),
        )
        return bool(answer == b"written")

    async def close(self, tenant: str, response: str) -> bool:
        """Keep a response's owner from writing, so that `end` can be called in its place.

        False if it has ended, or is not there any more.
        """
        return bool(await self._call("close", tenant, response))

    async def end(
        self, tenant: str, response: str, last: int, frame: bytes, fields: Mapping[str, str]
    ) -> None:
        """End a response that is closed, with the event `frame`, whose number is `last`.

        One that has ended is left as it is.
        """
        await self._call(
            "end", *(tenant, response, self._ttl_ms, self._limit, last, 1, frame), *_flat(fields)
        )

    async def events(self, tenant: str, response: str) -> Events:
        """Return all events of a response's log so far; the number of the last is -1 for none."""
        log = ResponseLog(self._redis, self._stored.events(tenant, response))
        frames: tuple[bytes, ...] = ()
        while found := await log.after(len(frames) - 1):
            frames += found.frames
        return Events(frames, len(frames) - 1)

    async def get(self, tenant: str, response: str) -> StoredResponse | None:
        """Return a response of the tenant, None if there is none of this id."""
        (stored,) = await self.get_all(tenant, [response])
        return stored

    async def get_all(self, tenant: str, responses: Sequence[str]) -> list[StoredResponse | None]:
        """Return responses of the tenant, None where there is none of an id."""
        with translated():
            async with (
                asyncio.timeout(CALL_TIMEOUT),
                self._redis.pipeline(transaction=False) as pipe,
            ):
                for response in responses:
                    pipe.hgetall(self._stored.response(tenant, response))
                rows = await pipe.execute()
        return [_decoded(id_, row) for id_, row in zip(responses, rows, strict=True)]

    async def touch(self, tenant: str, responses: Sequence[str]) -> None:
        """Let responses live as long as one that is stored now."""
        await self._call("touch", tenant, self._ttl_ms, *responses)

    async def delete(self, tenant: str, response: str) -> bool:
        """Delete a response; False if it was not there."""
        return bool(await self._call("drop", tenant, response))

    async def has_owner(self, stored: StoredResponse) -> bool:
        """Tell whether the API server that runs a background response lives and is in time."""
        apis = self._keys.pool(checked_pool(stored.pool)).apis
        with translated():
            async with asyncio.timeout(CALL_TIMEOUT):
                seconds, micros = await self._redis.time()
                expiry = await self._redis.zscore(apis, stored.api)
        now = seconds * 1_000_000 + micros
        alive = not stored.api or (expiry is not None and expiry > now)
        return alive and seconds < stored.end_by

    @contextlib.asynccontextmanager
    async def log(self, tenant: str, response: str) -> AsyncIterator[ResponseLog]:
        """Open the log of a background response, on a connection of its own."""
        redis = open_blocking_redis(self._redis_url)
        try:
            yield ResponseLog(redis, self._stored.events(tenant, response))
        finally:
            await redis.aclose()

    @property
    def _redis(self) -> Redis:
        return self._functions.redis

    async def _call(self, function: str, *args: str | bytes | float) -> object:
        answer: object = await self._functions.call(
            f"response_{function}", self._stored.root, *args
        )
        return answer


class ResponseLog:
    """The events of one response, read in order."""

    def __init__(self, redis: Redis, key: str) -> None:
        self._redis = redis
        self._key = key

    async def after(self, number: int, *, wait: float = 0.0) -> Events | None:
        """Return events after `number` (-1: from the first on); None if none came within `wait`.

        `wait` is in seconds. Raises RedisUnavailableError.
        """
        with translated():
            async with asyncio.timeout(wait + CALL_TIMEOUT):
                answer = await self._redis.xread(
                    {self._key: f"{number}-1" if number >= 0 else "0-0"},
                    count=_READ,
                    block=int(wait * 1000) or None,
                )
        if not answer:
            return None
        ((_, entries),) = answer
        last = int(entries[-1][0].partition(b"-")[0])
        return Events(tuple(fields[b"frame"] for _, fields in entries), last)


def _decoded(response: str, row: Mapping[bytes, bytes]) -> StoredResponse | None:
    if not row:
        return None
    text = {name.decode(): value.decode() for name, value in row.items()}
    return StoredResponse(
        id=response,
        status=text["status"],
        response=text["response"],
        input=text["input"],
        chain=tuple(text["chain"].split()),
        digest=text["digest"],
        pool=text["pool"],
        job=text["job"],
        api=text["api"],
        end_by=int(text["end_by"]),
    )
