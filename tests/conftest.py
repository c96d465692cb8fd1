"""Fixtures for all tests: a real server, empty for each, and a clock that only tests can set."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import os
import random
import shutil
import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace

import httpx
import hypothesis
import pytest
import redis as sync_redis
from redis.asyncio import Redis
from redis.exceptions import RedisError

from queueserve.garbage import settle
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


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Spare the collector what stays, as our own processes do.

    To walk through all modules and tests took a second, each time an engine closed.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        settle()
        gc.enable()


TESTING_LUA = (Path(__file__).parent / "testing.lua").read_text()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory):
    """The embedded Valkey, one for the whole session."""
    with EmbeddedRedis(tmp_path_factory.mktemp("redis"), port=0) as server:
        yield server


_PORTS = 2_000  # of each test process


def _free_port() -> int:
    """A port that stays free: no test process has those of another, and no connection gets them.

    The kernel gives connections ports from 32768 on.
    """
    own = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 8
    for port in random.sample(range(16_000 + own * _PORTS, 16_000 + (own + 1) * _PORTS), _PORTS):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    pytest.fail("no port is free")


@pytest.fixture(scope="session")
def free_port():
    """Gives ports that are free, and stay so until somebody asks for them."""
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


# TLS


@pytest.fixture(scope="session", autouse=True)
def _one_context_for_all_clients():
    """The clients of a test process share what they trust: to read it takes each one 40 ms."""
    with pytest.MonkeyPatch.context() as patch:
        made = functools.cache(httpx.create_ssl_context)
        patch.setattr("httpx._transports.default.create_ssl_context", made)
        yield


@pytest.fixture(scope="session", autouse=True)
def _patient_clients():
    """By itself httpx gives up after five seconds, which a busy machine may take."""
    with pytest.MonkeyPatch.context() as patch:
        for what in ("connect", "read", "write", "pool"):
            patch.setattr(httpx._config.DEFAULT_TIMEOUT_CONFIG, what, 60.0)
        yield


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    """An authority, and what it has signed: for the server (127.0.0.1), for elsewhere, a client."""
    home = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=home, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    authority = ("-subj", "/CN=authority", "-addext", "keyUsage=critical,keyCertSign")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", *authority)
    for name, host in (("server", "IP:127.0.0.1"), ("other", "DNS:other"), ("client", "DNS:me")):
        openssl(
            *("req", "-x509", *key, "-keyout", f"{name}.key", "-out", f"{name}.pem"),
            *("-subj", f"/CN={name}", "-CA", "ca.pem", "-CAkey", "ca.key"),
            *("-addext", f"subjectAltName={host}", "-addext", "basicConstraints=CA:FALSE"),
        )
    return home


@pytest.fixture(scope="session")
def tls_binary() -> str:
    """A server that has TLS of its own; the embedded one does not."""
    found = os.environ.get("QUEUESERVE_TEST_REDIS") or shutil.which("redis-server")
    if found is None:
        pytest.skip("no redis-server with TLS here; CI has one")
    return found


# Sentinel


SENTINEL = """
port {port}
bind 127.0.0.1
sentinel monitor main 127.0.0.1 {master} 2
sentinel down-after-milliseconds main 1000
sentinel failover-timeout main 4000
"""


async def _until(look) -> None:
    """Wait until `look` gives something true; what is not up yet does not answer."""
    async with asyncio.timeout(40):
        while True:
            with contextlib.suppress(OSError, KeyError, RedisError):
                if await look():
                    return
            await asyncio.sleep(0.05)


@pytest.fixture
async def sentinels(start_redis, free_port, tmp_path):
    """A master, its replica, and three sentinels: their ports, and the master's process."""
    master = start_redis("--appendonly", "yes")
    replica = start_redis("--replicaof", f"127.0.0.1 {master.port}", "--appendonly", "yes")
    async with open_redis(f"redis://127.0.0.1:{master.port}") as asked:

        async def replicates() -> bool:
            return (await asked.info("replication"))["slave0"]["state"] == "online"

        await _until(replicates)  # before the sentinels look, which is every ten seconds
    ports, processes = [free_port() for _ in range(3)], []
    for port in ports:
        file = tmp_path / f"sentinel-{port}.conf"
        file.write_text(SENTINEL.format(port=port, master=master.port))
        command = [_wheel_binary(), str(file), "--sentinel"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        processes.append(subprocess.Popen(command, **quiet))  # noqa: ASYNC220 - it does not wait
    yield SimpleNamespace(
        ports=ports,
        master=master.process,
        master_port=master.port,
        replica=replica.process,
        replica_port=replica.port,
    )
    for process in processes:
        process.kill()
        process.wait(10)


@pytest.fixture
async def sentinel_url(sentinels):
    """Ready to fail over: all three know each other, and the replica."""
    for port in sentinels.ports:
        async with open_redis(f"redis://127.0.0.1:{port}") as asked:

            async def knows_all(asked=asked) -> bool:
                state = (await asked.sentinel_masters())["main"]
                return state["num-other-sentinels"] == 2 and state["num-slaves"] == 1

            await _until(knows_all)
    hosts = ",".join(f"127.0.0.1:{port}" for port in sentinels.ports)
    return f"redis+sentinel://{hosts}/main/0"
