"""Fixtures for all tests: a real server, empty for each, and a clock that only tests can set."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest
import redis as sync_redis
from redis.asyncio import Redis

from queueserve.queue.connection import open_redis
from queueserve.queue.embedded import EmbeddedRedis
from queueserve.queue.functions import Functions
from queueserve.queue.keys import Keys

# No example is slow by itself; on a busy machine any of them may be.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

TESTING_LUA = (Path(__file__).parent / "testing.lua").read_text()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory):
    """The embedded Valkey, one for the whole session."""
    with EmbeddedRedis(tmp_path_factory.mktemp("redis"), port=0) as server:
        yield server


@pytest.fixture
def redis_url(redis_server):
    """The URL of a server that is empty."""
    with sync_redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    return redis_server.url


@pytest.fixture
async def redis(redis_url) -> Redis:
    client = open_redis(redis_url)
    yield client
    await client.aclose()


@pytest.fixture
def keys() -> Keys:
    return Keys()


@pytest.fixture
def functions(redis) -> Functions:
    """The function library with the tests' clock in it."""
    return Functions(redis, extra=TESTING_LUA)
