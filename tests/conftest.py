"""Fixtures for all tests: a real server, empty for each, and a clock that only tests can set."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import pytest
import redis as sync_redis
from redis.asyncio import Redis

from queueserve.logs import Sparse
from queueserve.queue import skips
from queueserve.queue.connection import open_redis
from queueserve.queue.embedded import EmbeddedRedis, _wheel_binary
from queueserve.queue.functions import Functions
from queueserve.queue.keys import Keys

# No example is slow by itself; on a busy machine any of them may be.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

# GNU OpenMP reads it when it is loaded, which a test module may do before any engine can set it:
# threads that spin for a processor that another test has would burn most of the suite's time.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

TESTING_LUA = (Path(__file__).parent / "testing.lua").read_text()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory):
    """The embedded Valkey, one for the whole session."""
    with EmbeddedRedis(tmp_path_factory.mktemp("redis"), port=0) as server:
        yield server


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@pytest.fixture
def free_port():
    """Gives ports that are free now."""
    return _free_port


@pytest.fixture
def start_redis(tmp_path):
    """Start another server with these options; it ends with the test."""
    with contextlib.ExitStack() as stack:

        def start(*options: str, binary: Path | str | None = None) -> SimpleNamespace:
            port = _free_port()
            home = tmp_path / f"redis-{port}"
            home.mkdir()
            where = ("--bind", "127.0.0.1", "--dir", str(home), "--save", "")
            ports = () if "--port" in options else ("--port", str(port))
            process = subprocess.Popen(
                [binary or _wheel_binary(), *options, *ports, *where],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            stack.callback(process.wait, 10)
            stack.callback(process.kill)
            return SimpleNamespace(port=port, process=process, home=home)

        yield start


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


class Skipped(logging.Handler):
    """What this process has skipped, and what its log says of it, as sparsely as a real one."""

    def __init__(self) -> None:
        super().__init__()
        self.addFilter(Sparse())
        self.counts = skips.counts
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def assert_is(self, **kinds: int) -> None:
        """So many of each kind, and nothing else; one line was logged for each."""
        assert self.counts == {kind.replace("_", " "): count for kind, count in kinds.items()}
        said = [line for line in self.lines if line.startswith("skipped a ")]
        assert len(said) == len(kinds), said
        for kind in self.counts:
            assert sum(f"skipped a {kind} (1 so far)" in line for line in said) == 1


@pytest.fixture
def skipped():
    """Counts from zero, and hears the log."""
    handler = Skipped()
    handler.counts.clear()
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)
