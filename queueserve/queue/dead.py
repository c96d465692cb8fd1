"""Dead letters: jobs that ended their workers, the last one while they ran alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from queueserve.queue.connection import translated
from queueserve.queue.directory import all_cards
from queueserve.queue.keys import Keys, PoolKeys

_US = 1_000_000


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A job that was given up. Times are Unix seconds."""

    id: str
    pool: str
    died: float
    submitted: float
    attempts: int
    tenant: str
    workers: tuple[str, ...]  # those it ended, the last one alone
    reason: str
    body_bytes: int
    body: str  # the job as JSON; "" if it was too long to be kept


async def dead_letters(redis: Redis, keys: Keys, model: str | None) -> list[DeadLetter]:
    """The dead letters of one model, by any of its names, or of all; the latest comes last.

    Raises RedisUnavailableError.
    """
    letters: list[DeadLetter] = []
    for pool in await _pools(redis, keys, model):
        letters += await _letters(redis, keys.pool(pool), pool)
    return sorted(letters, key=lambda letter: letter.died)


async def clear(redis: Redis, keys: Keys, model: str | None) -> int:
    """Delete the dead letters of one model, or of all; returns how many there were."""
    found = 0
    for pool in await _pools(redis, keys, model):
        names = keys.pool(pool)
        with translated():
            ids = await redis.zrange(names.dead, 0, -1)
            if ids:
                await redis.delete(*(names.dead_letter(_text(job)) for job in ids))
                found += await redis.zrem(names.dead, *ids)
    return found


async def _pools(redis: Redis, keys: Keys, model: str | None) -> list[str]:
    cards = await all_cards(redis, keys)
    if model is None:
        return sorted({card.pool for card in cards})
    return [next((card.pool for card in cards if card.name == model), model)]


async def _letters(redis: Redis, names: PoolKeys, pool: str) -> list[DeadLetter]:
    with translated():
        ids = [_text(job) for job in await redis.zrange(names.dead, 0, -1)]
        async with redis.pipeline(transaction=False) as pipe:
            for job in ids:
                pipe.hgetall(names.dead_letter(job))
            rows = await pipe.execute(raise_on_error=False)
    pairs = zip(ids, rows, strict=True)
    return [_letter(job, pool, row) for job, row in pairs if row and isinstance(row, dict)]


def _letter(job: str, pool: str, row: dict[bytes, bytes]) -> DeadLetter:
    def text(name: str) -> str:
        return _text(row.get(name.encode(), b""))

    def number(name: str) -> int:
        return int(text(name)) if text(name).isdecimal() else 0

    return DeadLetter(
        id=job,
        pool=pool,
        died=number("died") / _US,
        submitted=number("submitted") / _US,
        attempts=number("attempts"),
        tenant=text("tenant"),
        workers=tuple(text("workers").split()),
        reason=text("reason"),
        body_bytes=number("body_bytes"),
        body=text("body"),
    )


def _text(value: Any) -> str:
    return str(value.decode(errors="replace"))
