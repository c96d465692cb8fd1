"""Sentinel, with real processes: the master is killed under load, and another one takes over."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from types import SimpleNamespace

import pytest
from redis.exceptions import RedisError

from queueserve.errors import QueueServeError, RedisConfigurationError
from queueserve.queue.connection import open_redis
from queueserve.queue.embedded import _wheel_binary
from queueserve.queue.preflight import check
from workers.engines.fake import FakeEngine

BOUND = 40.0

CONFIGURATION = """
port {port}
bind 127.0.0.1
sentinel monitor main 127.0.0.1 {master} 2
sentinel down-after-milliseconds main 1000
sentinel failover-timeout main 4000
"""


async def until(look) -> None:
    """Wait until `look` gives something true; what is not up yet does not answer."""
    async with asyncio.timeout(BOUND):
        while True:
            with contextlib.suppress(OSError, KeyError, RedisError):
                if await look():
                    return
            await asyncio.sleep(0.05)


@pytest.fixture
async def sentinels(start_redis, free_port, tmp_path):
    """A master, its replica, and three sentinels: their ports, and the master's process."""
    master = start_redis("--appendonly", "yes")
    start_redis("--replicaof", f"127.0.0.1 {master.port}", "--appendonly", "yes")
    async with open_redis(f"redis://127.0.0.1:{master.port}") as asked:

        async def replicates() -> bool:
            return (await asked.info("replication"))["slave0"]["state"] == "online"

        await until(replicates)  # before the sentinels look, which is every ten seconds
    ports, processes = [free_port() for _ in range(3)], []
    for port in ports:
        file = tmp_path / f"sentinel-{port}.conf"
        file.write_text(CONFIGURATION.format(port=port, master=master.port))
        command = [_wheel_binary(), str(file), "--sentinel"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        processes.append(subprocess.Popen(command, **quiet))  # noqa: ASYNC220 - it does not wait
    yield SimpleNamespace(ports=ports, master=master.process)
    for process in processes:
        process.kill()
        process.wait(10)


@pytest.fixture
async def redis_url(sentinels):
    """Ready to fail over: all three know each other, and the replica."""
    for port in sentinels.ports:
        async with open_redis(f"redis://127.0.0.1:{port}") as asked:

            async def knows_all(asked=asked) -> bool:
                state = (await asked.sentinel_masters())["main"]
                return state["num-other-sentinels"] == 2 and state["num-slaves"] == 1

            await until(knows_all)
    hosts = ",".join(f"127.0.0.1:{port}" for port in sentinels.ports)
    return f"redis+sentinel://{hosts}/main/0"


async def served(house, plane, read) -> int:
    """Ask until it is answered: the way clients retry a 503."""
    async with asyncio.timeout(BOUND):
        while True:
            try:
                return len((await read(await plane.owner.open(house.job())))[1])
            except QueueServeError:
                await asyncio.sleep(0.1)


async def test_a_killed_master_is_replaced_and_requests_are_served_again(house, read, sentinels):
    await house.worker(FakeEngine(tick=0.01))
    plane = await house.plane()
    assert await served(house, plane, read) == 40
    sentinels.master.kill()
    assert await served(house, plane, read) == 40
    assert await served(house, plane, read) == 40
    assert (await house.redis.info("replication"))["role"] == "master"
    await wrong_addresses(sentinels.ports)


async def wrong_addresses(ports) -> None:
    async with open_redis(f"redis://127.0.0.1:{ports[0]}") as sentinel:
        with pytest.raises(RedisConfigurationError, match=r"use redis\+sentinel://"):
            await check(sentinel)
    async with open_redis(f"redis+sentinel://127.0.0.1:{ports[0]}/other/0") as unknown:
        with pytest.raises(QueueServeError, match="No master found"):
            await check(unknown)
