"""`queueserve dead`: the jobs that were given up, as a table, as JSON, or one in full."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, TypeVar

import orjson
from redis.asyncio import Redis

from queueserve.errors import InvalidRequestError
from queueserve.queue.connection import open_redis
from queueserve.queue.dead import DeadLetter, clear, dead_letters
from queueserve.queue.keys import Keys
from queueserve.tables import aligned

_HEADER = ("JOB", "MODEL", "DIED", "ATTEMPTS", "TENANT", "LAST WORKER")
_Answer = TypeVar("_Answer")


async def read(redis_url: str, prefix: str, model: str | None) -> list[DeadLetter]:
    """All dead letters of a model, or of all models. Raises RedisUnavailableError."""
    return await _with_redis(redis_url, lambda redis: dead_letters(redis, Keys(prefix), model))


async def forget(redis_url: str, prefix: str, model: str | None) -> int:
    """Delete them; returns how many. Raises RedisUnavailableError."""
    return await _with_redis(redis_url, lambda redis: clear(redis, Keys(prefix), model))


async def _with_redis(
    redis_url: str, ask: Callable[[Redis], Coroutine[Any, Any, _Answer]]
) -> _Answer:
    redis = open_redis(redis_url)
    try:
        return await ask(redis)
    finally:
        await redis.aclose()


def find(letters: Sequence[DeadLetter], job: str) -> DeadLetter:
    """The letter of one job. Raises InvalidRequestError."""
    for letter in letters:
        if letter.id == job:
            return letter
    raise InvalidRequestError(f"There is no dead letter of a job {job!r}.")


def render_json(letters: Sequence[DeadLetter]) -> str:
    """A JSON list, each letter's fields under their names, the job's body as JSON."""
    rows = [asdict(letter) | {"body": _body(letter)} for letter in letters]
    return orjson.dumps(rows, option=orjson.OPT_INDENT_2).decode()


def render_one(letter: DeadLetter) -> str:
    """Everything about one letter, for a person."""
    size = f"{letter.body_bytes} bytes"
    body = _body(letter)
    lines = [
        f"Job       {letter.id} of {letter.pool}, tenant {letter.tenant}",
        f"Sent      {_time(letter.submitted)}",
        f"Given up  {_time(letter.died)}, after {letter.attempts} attempts",
        f"Workers   {', '.join(letter.workers)}",
        f"Reason    {letter.reason}",
        f"Body      {size}" if body is not None else f"Body      {size}, too long to be kept",
    ]
    if body is not None:
        lines.append(orjson.dumps(body, option=orjson.OPT_INDENT_2).decode())
    return "\n".join(lines)


def render_table(letters: Sequence[DeadLetter]) -> str:
    """A line for each letter."""
    if not letters:
        return "No dead letter."
    return "\n".join(aligned([_HEADER, *map(_row, letters)]))


def _row(letter: DeadLetter) -> tuple[str, ...]:
    last = letter.workers[-1] if letter.workers else "-"
    died = _time(letter.died)
    return (letter.id, letter.pool, died, str(letter.attempts), letter.tenant, last)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _body(letter: DeadLetter) -> Any:
    if not letter.body:
        return None
    try:
        return orjson.loads(letter.body)
    except ValueError:
        return letter.body
