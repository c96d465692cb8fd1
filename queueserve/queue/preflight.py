"""A look at Redis before anything is built on it: can it do, and may it lose jobs."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError

from queueserve.errors import RedisConfigurationError, RedisUnavailableError
from queueserve.queue.connection import ANSWER_TIMEOUT, open_redis, translated

log = logging.getLogger(__name__)

_OLDEST = {"redis": (7, 0), "valkey": (7, 2)}
_TOO_OLD = "QueueServe needs Redis 7.0 or Valkey 7.2, for its functions"


async def check_at_start(url: str) -> None:
    """Check the Redis at `url`, and log what is worth a warning.

    Raises RedisConfigurationError. One that does not answer may come later: that is no error.
    """
    redis = open_redis(url)
    try:
        await check(redis)
        for warning in await risks(redis):
            log.warning("Redis: %s", warning)
    except RedisUnavailableError as error:
        log.warning("waiting for Redis: %s", error.message)
    finally:
        await redis.aclose()


async def check(redis: Redis) -> None:
    """Raise RedisConfigurationError for a Redis that will never do, or that refuses us.

    Raises RedisUnavailableError if it does not answer.
    """
    with translated():
        async with asyncio.timeout(ANSWER_TIMEOUT):
            told = await _hello(redis)
    server, version = told.get("server", "redis"), told.get("version", "0")
    oldest = _OLDEST.get(server, _OLDEST["redis"])
    if _numbers(version) < oldest:
        raise RedisConfigurationError(f"This is {server} {version}; {_TOO_OLD}.")
    if told.get("mode") == "cluster":
        raise RedisConfigurationError(
            "This is a node of a cluster; QueueServe needs one master, alone or with Sentinel."
        )
    if told.get("mode") == "sentinel":
        raise RedisConfigurationError(
            "This is a Sentinel, not a Redis: use redis+sentinel://host:port,host:port/NAME/0."
        )
    if told.get("role") == "replica":
        log.warning("Redis: this is a replica, which takes no writes, unless it becomes the master")


async def risks(redis: Redis) -> list[str]:
    """What can lose jobs, in words; nothing for a user that may not look."""
    try:
        with translated():
            async with asyncio.timeout(ANSWER_TIMEOUT):
                info: dict[str, Any] = await redis.info()
    except RedisUnavailableError:
        return []
    found = []
    if info.get("maxmemory_policy") != "noeviction":
        found.append(
            f"maxmemory-policy is {info.get('maxmemory_policy')}: a full Redis would throw jobs "
            "away; set noeviction"
        )
    if not info.get("aof_enabled"):
        found.append("appendonly is no: its jobs are lost when it ends; set appendonly yes")
    return found


async def _hello(redis: Redis) -> dict[str, str]:
    try:
        flat = await redis.execute_command("HELLO")  # type: ignore[no-untyped-call]
    except (AuthenticationError, NoPermissionError) as error:
        raise RedisConfigurationError(f"Redis refuses us: {error}") from error
    except ResponseError as error:
        if "unknown command" in str(error).lower():
            raise RedisConfigurationError(f"This Redis is older than 6; {_TOO_OLD}.") from error
        if "NOAUTH" in str(error) or "DB index" in str(error):  # of the URL: there are 16, say
            raise RedisConfigurationError(f"Redis refuses us: {error}") from error
        raise
    except RedisError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise RedisConfigurationError(f"Redis' certificate is not accepted: {error}") from error
        raise
    words = [part.decode(errors="replace") if isinstance(part, bytes) else part for part in flat]
    return {name: str(value) for name, value in zip(words[::2], words[1::2], strict=False)}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
