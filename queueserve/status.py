"""`queueserve status`: what Redis knows of models, queues and workers, as a table or as JSON."""

from __future__ import annotations

from dataclasses import asdict

import orjson

from queueserve.queue.connection import open_redis
from queueserve.queue.inspect import ModelView, Snapshot, WorkerView, snapshot
from queueserve.tables import aligned

_HEADER = ("WORKER", "ENGINE", "HOST", "PID", "STATE", "RUNNING", "LOAD", "SPEED", "TTL")


async def read(redis_url: str, prefix: str) -> Snapshot:
    """Look once. Raises RedisUnavailableError."""
    redis = open_redis(redis_url)
    try:
        return await snapshot(redis, prefix)
    finally:
        await redis.aclose()


def render_json(seen: Snapshot) -> str:
    """Give the snapshot's fields under their names."""
    return orjson.dumps(asdict(seen), option=orjson.OPT_INDENT_2).decode()


def render_table(seen: Snapshot) -> str:
    """Give a block for each model: its queue, then a line for each worker."""
    servers = len(seen.api_servers)
    ends = [f"{servers} API server{'' if servers == 1 else 's'} with requests"]
    if not seen.models:
        return "No model: no worker has registered one."
    return "\n\n".join([_block(model) for model in seen.models] + (ends if servers else []))


def _block(model: ModelView) -> str:
    title = ", ".join((model.name, *model.aliases))
    waits = f", the first for {model.oldest_wait:.1f} s" if model.depth else ""
    skipped = f", {model.skipped} skipped" if model.skipped else ""
    line = f"{title}: {model.depth} waiting{waits}, {model.running} running{skipped}"
    if not model.workers:
        return f"{line}, no worker"
    rows = [_row(worker) for worker in model.workers]
    return "\n".join((line, *(f"  {row}" for row in aligned([_HEADER, *rows]))))


def _row(worker: WorkerView) -> tuple[str, ...]:
    return (
        worker.id,
        worker.engine,
        worker.host,
        str(worker.pid),
        worker.state,
        f"{worker.running}/{worker.slots}",
        "-" if worker.load is None else f"{worker.load:.2f}",
        f"{worker.speed:.2f}",
        f"{worker.ttl:.0f} s",
    )
