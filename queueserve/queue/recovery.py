"""The reaper: ends workers, API servers and jobs whose time is up. It runs in every process."""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from queueserve.errors import RedisUnavailableError
from queueserve.queue.connection import of_another, translated
from queueserve.queue.directory import known_cards
from queueserve.queue.functions import Functions
from queueserve.queue.keys import Keys
from queueserve.queue.skips import skip

log = logging.getLogger(__name__)

_US = 1_000_000
_JITTER = 0.05  # of the wait, so that many processes do not reap at the same moment
_SOONEST = 0.005  # seconds


@dataclass(frozen=True, slots=True)
class Reaped:
    """What one call found."""

    expired: bool  # the calling API server's own registration was gone
    wait: float  # seconds until something is due again


class Reaper:
    """Reaps pools, on behalf of the API server `api` if one is named."""

    def __init__(self, functions: Functions, keys: Keys, *, heartbeat_timeout: float) -> None:
        self._functions = functions
        self._keys = keys
        self._timeout_us = int(heartbeat_timeout * _US)
        self._skipped: dict[str, int] = {}  # pool → what its functions had skipped

    async def reap(self, pool: str, *, api: str = "", dead: str = "") -> Reaped:
        """End what is due in `pool`, and renew `api`. Raises RedisUnavailableError."""
        verdict, wait_us, skipped, last = await self._functions.call(
            "reap", self._keys.pool(pool).root, self._timeout_us, api, dead
        )
        self._tell(pool, skipped, last)
        return Reaped(verdict == b"gone", wait_us / _US)

    def _tell(self, pool: str, skipped: int, last: bytes) -> None:
        """Say that the functions have skipped more: they count it in Redis, and have no log."""
        if skipped > self._skipped.get(pool, 0):
            text = "Redis skipped keys of %s that are not ours (%d times so far), the last: %s"
            about = last.decode(errors="replace")
            log.warning(text, pool, skipped, about, extra={"sparse": True})
        self._skipped[pool] = skipped

    async def run(self, pool: str) -> None:
        """Reap `pool` for ever, sleeping until the next thing is due."""
        while True:
            try:
                wait = (await self.reap(pool)).wait
            except RedisUnavailableError as error:
                log.debug("reaper: %s", error.message)
                wait = 1.0
            await asyncio.sleep(jittered(wait))


def jittered(wait: float) -> float:
    """`wait` seconds, a little later: never before what is due."""
    return max(_SOONEST, wait * (1 + random.random() * _JITTER))  # noqa: S311 - not a secret


async def declare_dead(redis: Redis, keys: Keys, process: str, *, heartbeat_timeout: float) -> int:
    """Reap at once the workers of a process that is known to have ended.

    `process` is `host-pid`: its workers' ids are that and a suffix. Returns how many there were.
    """
    functions = Functions(redis)
    reaper = Reaper(functions, keys, heartbeat_timeout=heartbeat_timeout)
    found = 0
    with translated():
        pools = {card.pool for card in await known_cards(redis, keys)}
        for pool in pools:
            try:
                alive = await redis.zrange(keys.pool(pool).alive, 0, -1)
            except ResponseError as error:  # the others' can still be reaped
                if not of_another(error):
                    raise
                skip(log, "pool", f"{pool}: {error}")
                continue
            for worker in alive:
                name = worker.decode(errors="replace")
                if name.rpartition("-")[0] == process:  # a host may be called like host and pid
                    await reaper.reap(pool, dead=name)
                    found += 1
    return found
