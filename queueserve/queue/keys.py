"""Every Redis key is made here; what the Lua functions derive is tested equal to it.

All keys of one pool share the hash tag `{pool}`, so a function call touches one cluster slot. The
functions get the pool's root, `qs:{pool}`, as their one key.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from queueserve.errors import InvalidRequestError

_POOL = re.compile(r"[\w.\-/:@+ ]{1,200}")


def checked_pool(pool: str) -> str:
    """`pool`, if it can be a hash tag. Raises InvalidRequestError: braces would split the keys."""
    if not _POOL.fullmatch(pool):
        raise InvalidRequestError(
            f"{pool!r} cannot name a model: letters, digits and . _ - / : @ + only", param="model"
        )
    return pool


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys under one prefix."""

    prefix: str = "qs:"

    @property
    def pools(self) -> str:
        """SET: every pool that ever had a worker; workers may add to it, and no more."""
        return f"{self.prefix}pools"

    def reply(self, api: str) -> str:
        """Channel: the events for one API server."""
        return f"{self.prefix}reply:{api}"

    @property
    def stored(self) -> StoredKeys:
        """The keys of stored responses."""
        return StoredKeys(f"{self.prefix}{{stored}}")

    def orders(self, process: str) -> str:
        """Channel: what operators ask of a worker process."""
        return f"{self.prefix}orders:{process}"

    def pool(self, pool: str) -> PoolKeys:
        """The keys of one pool."""
        return PoolKeys(f"{self.prefix}{{{pool}}}")


@dataclass(frozen=True, slots=True)
class PoolKeys:
    """The keys of one pool, all with the hash tag of `root`."""

    root: str

    @property
    def state(self) -> str:
        """HASH: virtual times, the last epoch, counters, the measured rate."""
        return f"{self.root}:state"

    @property
    def cards(self) -> str:
        """HASH: model name → card; of the pool alone, so that only its workers can write it."""
        return f"{self.root}:cards"

    @property
    def fair(self) -> str:
        """HASH: per (class, tenant), the tags of fair queueing."""
        return f"{self.root}:fair"

    @property
    def waiting(self) -> str:
        """HASH: tenant → jobs in the queue."""
        return f"{self.root}:waiting"

    @property
    def queue(self) -> str:
        """ZSET: job → rank."""
        return f"{self.root}:queue"

    @property
    def alive(self) -> str:
        """ZSET: worker → expiry, µs."""
        return f"{self.root}:alive"

    @property
    def free(self) -> str:
        """ZSET: worker → load; only workers that may take a job."""
        return f"{self.root}:free"

    @property
    def alone(self) -> str:
        """ZSET: job → rank, of jobs that wait for a worker to themselves."""
        return f"{self.root}:alone"

    @property
    def reserved(self) -> str:
        """HASH: worker → the job it runs alone, or nothing while it still runs others."""
        return f"{self.root}:reserved"

    @property
    def dead(self) -> str:
        """ZSET: job → when it was given up, µs."""
        return f"{self.root}:dead"

    @property
    def due(self) -> str:
        """ZSET: job → when the reaper must look at it, µs."""
        return f"{self.root}:due"

    @property
    def apis(self) -> str:
        """ZSET: API server → expiry, µs."""
        return f"{self.root}:apis"

    def worker(self, worker: str) -> str:
        """HASH with TTL: a registration."""
        return f"{self.root}:worker:{worker}"

    def lease(self, worker: str) -> str:
        """HASH: job → epoch, of what the worker runs."""
        return f"{self.root}:lease:{worker}"

    def inbox(self, worker: str) -> str:
        """LIST: hints that wake the worker."""
        return f"{self.root}:inbox:{worker}"

    def control(self, worker: str) -> str:
        """Channel: cancel, resync, drain."""
        return f"{self.root}:control:{worker}"

    def job(self, job: str) -> str:
        """HASH with TTL: a job."""
        return f"{self.root}:job:{job}"

    def dead_letter(self, job: str) -> str:
        """HASH with TTL: a job that was given up, for people."""
        return f"{self.root}:dead:{job}"

    def by_api(self, api: str) -> str:
        """SET: the open jobs of an API server."""
        return f"{self.root}:by_api:{api}"


@dataclass(frozen=True, slots=True)
class StoredKeys:
    """The keys of stored responses, all with the hash tag of `root`."""

    root: str

    def response(self, tenant: str, response: str) -> str:
        """HASH with TTL: a response of a tenant."""
        return f"{self.root}:response:{tenant}:{response}"

    def events(self, tenant: str, response: str) -> str:
        """STREAM with TTL: the events of a response that runs in the background."""
        return f"{self.root}:events:{tenant}:{response}"

    def index(self, tenant: str) -> str:
        """ZSET with TTL: response → expiry, µs."""
        return f"{self.root}:index:{tenant}"

    def sizes(self, tenant: str) -> str:
        """HASH with TTL: response → bytes."""
        return f"{self.root}:sizes:{tenant}"

    @property
    def bytes(self) -> str:
        """HASH with TTL: tenant → bytes; `*` → those of all tenants."""
        return f"{self.root}:bytes"
