"""What `queueserve status` shows: the pools, their queues and their workers, as Redis has them."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from queueserve.queue.connection import of_another, translated
from queueserve.queue.directory import known_cards
from queueserve.queue.keys import Keys, PoolKeys
from queueserve.queue.skips import skip

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A registration."""

    id: str
    host: str
    pid: int
    engine: str
    state: str  # ready, draining, or alone: only for jobs that may be what ended others
    slots: int
    running: int
    speed: float
    load: float | None  # (running + 1) / (slots * speed); None: takes no job now
    ttl: float  # seconds until the registration expires
    jobs: tuple[str, ...]  # what it runs


@dataclass(frozen=True, slots=True)
class ModelView:
    """A model's names, its queue and its workers."""

    name: str
    aliases: tuple[str, ...]
    context_length: int
    depth: int  # jobs that wait
    oldest_wait: float  # seconds that the head of the queue has waited; 0: nothing waits
    running: int
    workers: tuple[WorkerView, ...]
    skipped: int = 0  # jobs and workers whose keys were not ours


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything at one moment, more or less."""

    models: tuple[ModelView, ...]
    api_servers: tuple[str, ...]


async def snapshot(redis: Redis, prefix: str = "qs:") -> Snapshot:
    """Look at all known models. Raises RedisUnavailableError."""
    keys = Keys(prefix)
    cards = await known_cards(redis, keys)
    models, apis = [], set()
    for pool in sorted({card.pool for card in cards}):
        names = sorted(card.name for card in cards if card.pool == pool and card.name != pool)
        context = max(card.context_length for card in cards if card.pool == pool)
        with translated():
            try:
                seen = await _model(redis, keys.pool(pool), pool, tuple(names), context)
            except ResponseError as error:  # the others can still be shown
                if not of_another(error):
                    raise
                skip(log, "pool", f"{pool}: {error}")
                continue
        model, servers = seen
        models.append(model)
        apis.update(servers)
    return Snapshot(tuple(models), tuple(sorted(apis)))


async def _model(
    redis: Redis, pool: PoolKeys, name: str, aliases: tuple[str, ...], context: int
) -> tuple[ModelView, list[str]]:
    async with redis.pipeline(transaction=False) as pipe:
        pipe.zrange(pool.alive, 0, -1)
        pipe.zcard(pool.queue)
        pipe.zrange(pool.queue, 0, 0)
        pipe.zrange(pool.apis, 0, -1)
        pipe.zcard(pool.alone)
        pipe.hget(pool.state, "skipped")
        alive, depth, head, apis, alone, skipped = await pipe.execute()
    first = pool.job(head[0].decode(errors="replace")) if head else ""
    submitted = await redis.hget(first, "submitted") if head else None  # type: ignore[misc]
    known = submitted if submitted and submitted.isdigit() else None
    oldest = time.time() - int(known) / 1e6 if known else 0.0
    workers = await _workers(redis, pool, [worker.decode(errors="replace") for worker in alive])
    running = sum(worker.running for worker in workers)
    view = ModelView(
        name,
        aliases,
        context,
        depth + alone,
        max(0.0, oldest),
        running,
        tuple(workers),
        skipped=int(skipped) if skipped and skipped.isdigit() else 0,
    )
    return view, [api.decode(errors="replace") for api in apis]


async def _workers(redis: Redis, pool: PoolKeys, ids: list[str]) -> list[WorkerView]:
    async with redis.pipeline(transaction=False) as pipe:
        for worker in ids:
            pipe.hgetall(pool.worker(worker))
            pipe.pttl(pool.worker(worker))
            pipe.zscore(pool.free, worker)
            pipe.hkeys(pool.lease(worker))
        rows = await pipe.execute(raise_on_error=False)
    quads = zip(*[iter(rows)] * 4, strict=True)
    views = [_readable(worker, quad) for worker, quad in zip(ids, quads, strict=True) if quad[0]]
    return [view for view in views if view is not None]


def _readable(worker: str, quad: tuple[Any, ...]) -> WorkerView | None:
    """A registration, if it is one of ours."""
    try:
        return _worker(worker, *quad)
    except (ValueError, TypeError, AttributeError) as error:  # AttributeError: the key's own error
        skip(log, "registration", f"of {worker}: {error}")
        return None


def _worker(
    worker: str, row: dict[bytes, bytes], ttl_ms: int, score: float | None, jobs: list[bytes]
) -> WorkerView:
    def field(name: str, kind: Any, default: Any) -> Any:
        return kind(row.get(name.encode(), default))

    return WorkerView(
        id=worker,
        host=row.get(b"host", b"").decode(),
        pid=field("pid", int, 0),
        engine=row.get(b"engine", b"").decode(),
        state=row.get(b"state", b"").decode(),
        slots=field("slots", int, 0),
        running=len(jobs),
        speed=field("speed", float, 1.0),
        load=None if score is None else round(score, 4),
        ttl=max(0, ttl_ms) / 1000,
        jobs=tuple(job.decode() for job in jobs),
    )
