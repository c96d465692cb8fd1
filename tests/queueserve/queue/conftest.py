"""Fixtures for the queue: all tests run on Valkey, and on the redis-server of PATH if there is one.

QUEUESERVE_TEST_REDIS names a redis-server that must be there; CI sets it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from queue_driver import START, PoolDriver

from queueserve.queue.embedded import EmbeddedRedis

_INSISTED = "QUEUESERVE_TEST_REDIS"
_OLDEST = 7  # the first Redis with functions


def _redis_version(binary: str) -> int:
    told = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"v=(\d+)", told.stdout)
    return int(found[1]) if found else 0


def _servers() -> list[str]:
    if _INSISTED in os.environ:
        return ["valkey", os.environ[_INSISTED]]
    found = shutil.which("redis-server")
    return ["valkey", found] if found and _redis_version(found) >= _OLDEST else ["valkey"]


@pytest.fixture(scope="session", params=_servers(), ids=lambda name: Path(name).name)
def redis_server(request, tmp_path_factory):
    """A real server, one for the whole session: the embedded one, and another one."""
    binary = None
    if request.param != "valkey":
        found = shutil.which(request.param)
        if found is None or _redis_version(found) < _OLDEST:
            pytest.fail(f"{_INSISTED}: {request.param} is no redis-server ≥ {_OLDEST}")
        binary = Path(found)
    with EmbeddedRedis(tmp_path_factory.mktemp("redis"), port=0, binary=binary) as server:
        yield server


@pytest.fixture
async def pool(redis, functions, keys):
    """A pool whose clock stands still until the test moves it."""
    driver = PoolDriver(redis, functions, keys)
    await driver.set_time(START)
    yield driver
    await functions.call("freeze", driver.root, "")
