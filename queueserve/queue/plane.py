"""The API server's control plane: what it needs of this package, opened and closed together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from queueserve.queue.connection import open_redis
from queueserve.queue.directory import Directory
from queueserve.queue.functions import Functions
from queueserve.queue.keys import Keys
from queueserve.queue.owner import Owner
from queueserve.queue.producer import Limits, Producer
from queueserve.queue.recovery import Reaper
from queueserve.queue.responses import ResponseStore


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """What the API server holds of Redis."""

    owner: Owner
    directory: Directory
    responses: ResponseStore


@asynccontextmanager
async def open_control_plane(
    redis_url: str,
    *,
    prefix: str = "qs:",
    heartbeat_timeout: float = 15.0,
    limits: Limits | None = None,
    response_ttl: float = 0.0,
    max_response_bytes: int = 0,
) -> AsyncIterator[ControlPlane]:
    """Connect. Redis may come later: until then every call raises RedisUnavailableError."""
    redis = open_redis(redis_url)
    lifeline = open_redis(redis_url)  # heartbeats and events must not wait in line behind requests
    keys = Keys(prefix)
    functions = Functions(redis)
    directory = Directory(redis, keys)
    producer = Producer(
        functions, keys, heartbeat_timeout=heartbeat_timeout, limits=limits or Limits()
    )
    responses = ResponseStore(
        functions, keys, redis_url=redis_url, ttl=response_ttl, limit=max_response_bytes
    )
    reaper = Reaper(Functions(lifeline), keys, heartbeat_timeout=heartbeat_timeout)
    try:
        async with Owner(
            lifeline, keys, producer, reaper, heartbeat_timeout=heartbeat_timeout
        ) as owner:
            yield ControlPlane(owner, directory, responses)
    finally:
        await redis.aclose()
        await lifeline.aclose()
