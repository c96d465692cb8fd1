"""Real processes on a real Redis, each behind a link of its own: started, hurt, started again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import resource
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import redis as sync_redis
from harness.catalogue import MODEL
from harness.links import Link
from harness.periods import Periods

from queueserve.queue import embedded
from queueserve.queue.embedded import EmbeddedRedis

ROOT = f"qs:{{{MODEL}}}"
BOUND = 180.0  # seconds that any single wait may take, on however slow a machine
_LOOK = 0.02
_HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a cluster is made of; times in seconds."""

    apis: int = 2
    workers: int = 4
    slots: int = 8
    tick: float = 0.02
    heartbeat: float = 2.0
    max_queue: int = 1000
    grace: float = 20.0
    request_timeout: float = 60.0
    write_timeout: float = 30.0
    bug: str = ""
    seed: int = 1


class Node:
    """One place for a process: an API server or a worker, many processes one after the other."""

    def __init__(self, cluster: Cluster, name: str, command: Callable[[], list[str]]) -> None:
        self.name = name
        self.link = Link(f"{name}-redis", cluster.size.seed)
        self.wanted = True
        # When it was hurt; of an API server: until the next one in its place took connections.
        self.killed, self.told, self.stopped = Periods(), Periods(), Periods()
        self.unexpected: list[str] = []
        self._cluster = cluster
        self._command = command
        self._expected = True
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        directory = self._cluster.directory
        env = os.environ | {
            "PYTHONPATH": str(_HERE.parent),
            "QUEUESERVE_REDIS_URL": f"redis://127.0.0.1:{self.link.port}/0",
        }
        words = [str(directory), self.name, self._cluster.size.bug, *self._command()]
        with (directory / f"{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "harness.process", *words],
                stdout=log,
                stderr=log,
                env=env,
                start_new_session=True,
            )
        self._expected = False

    def signal(self, number: signal.Signals) -> bool:
        """Send it; whether there was a process to get it."""
        if number is signal.SIGCONT:
            self.stopped.end()
        if not self.running:
            return False
        hurts = {
            signal.SIGKILL: self.killed,
            signal.SIGTERM: self.told,
            signal.SIGSTOP: self.stopped,
        }
        if number in hurts:
            hurts[number].begin()
        if number in (signal.SIGKILL, signal.SIGTERM):
            self._expected = True
        os.kill(self.pid, number)
        return True

    def has_fallen(self) -> bool:
        """Whether the process has ended; an end that nobody caused is noted."""
        if self._process is None or self._process.poll() is None:
            return False
        crashed = f"crash {self.pid}\n" in self._cluster.journal(self.name)
        if not self._expected and not crashed:
            self.unexpected.append(f"{self.name} ended with {self._process.returncode}")
        return True

    async def ended(self, seconds: float = BOUND) -> None:
        await until(
            lambda: self._process is None or self._process.poll() is not None,
            f"the end of {self.name}",
            seconds,
        )

    def close(self) -> None:
        self.wanted = False
        if self.running:
            os.kill(self.pid, signal.SIGCONT)
            os.kill(self.pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    async def ask(self, **question: Any) -> dict[str, Any] | None:
        """What the agent in the process says; None if it cannot be asked."""
        with contextlib.suppress(OSError, ValueError, TimeoutError):
            async with asyncio.timeout(10):
                path = str(self._cluster.directory / f"{self.name}.sock")
                reader, writer = await asyncio.open_unix_connection(path)
                writer.write(json.dumps(question).encode() + b"\n")
                answer = json.loads(await reader.readline())
                writer.close()
                return answer
        return None


class Api(Node):
    """An API server; clients reach it through `door`."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        super().__init__(cluster, name, self._words)
        self.door = Link(f"{name}-clients", cluster.size.seed)
        self.starting = False

    def start(self) -> None:
        super().start()
        self.starting = True

    def look(self) -> None:
        """Notice when a process that starts takes connections."""
        if self.starting and self.running and not self._expected:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.door.target), timeout=0.05).close()
                self.starting = False
                self._is_back()

    def _is_back(self) -> None:
        """The next process is there: what had been done to the last one is over."""
        self.killed.end()
        self.told.end()

    def _words(self) -> list[str]:
        size = self._cluster.size
        return [
            *("queueserve.cli", "serve", "--port", str(self.door.target)),
            *("--heartbeat-timeout", str(size.heartbeat), "--max-queue", str(size.max_queue)),
            *("--max-queue-per-tenant", str(size.max_queue), "--keep-alive", "5"),
            *("--queue-timeout", str(size.request_timeout * 0.7)),
            *("--request-timeout", str(size.request_timeout), "--grace", str(size.grace or 0.1)),
            *("--write-timeout", str(size.write_timeout)),
        ]


class Cluster:
    """All processes of one run; `async with`."""

    def __init__(self, directory: Path, size: Size) -> None:
        self.directory = directory
        self.size = size
        binary = _ignoring_xfsz(directory)
        self.redis = EmbeddedRedis(directory / "redis", port=_free_port(), binary=binary)
        self.apis = [Api(self, f"api{number}") for number in range(size.apis)]
        self.workers = [
            Node(self, f"worker{number}", self._worker_words) for number in range(size.workers)
        ]
        self.redis_hurt = Periods()
        self.redis_lock = asyncio.Lock()  # of who hurts it, and of who must have it whole

    def _worker_words(self) -> list[str]:
        size = self.size
        return [
            *(
                "workers.cli",
                "--engine",
                "fake",
                "--model-names",
                MODEL,
                "--grace",
                str(size.grace),
            ),
            *("--heartbeat-timeout", str(size.heartbeat), "--fake-tick", str(size.tick)),
            *("--limit-worker-concurrency", str(size.slots)),
        ]

    @property
    def nodes(self) -> list[Node]:
        return [*self.apis, *self.workers]

    @property
    def links(self) -> list[Link]:
        return [*(node.link for node in self.nodes), *(api.door for api in self.apis)]

    @property
    def slots(self) -> int:
        return self.size.workers * self.size.slots

    def ports(self) -> dict[str, int]:
        return {api.name: api.door.port for api in self.apis}

    def journal(self, name: str) -> str:
        path = self.directory / f"{name}.journal"
        return path.read_text() if path.exists() else ""

    async def __aenter__(self) -> Self:
        self.redis.start()
        self.client = sync_redis.Redis.from_url(
            self.redis.url, decode_responses=True, socket_timeout=BOUND
        )
        for node in self.nodes:
            await node.link.start()
            node.link.target = self.redis.port
        for api in self.apis:
            await api.door.start()
            api.door.target = _free_port()
        for node in self.nodes:
            node.start()
        self._keeping = asyncio.create_task(self._keep_running())
        try:
            await self.whole()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._keeping.cancel()
        await asyncio.wait([self._keeping])
        for node in self.nodes:
            node.close()
        for link in self.links:
            await link.aclose()
        self.client.close()
        async with self.redis_lock:
            if self.redis.pid:
                os.kill(self.redis.pid, signal.SIGCONT)
            await asyncio.to_thread(self.redis.stop)

    async def _keep_running(self) -> None:
        """Start again what has fallen, as every service manager does."""
        while True:
            await asyncio.sleep(0.1)
            for node in self.nodes:
                if node.wanted and node.has_fallen():
                    node.start()
            for api in self.apis:
                api.look()

    async def whole(self) -> None:
        """Wait until every process takes part."""
        await until(self._all_take_part, "a whole cluster")

    def registered(self) -> dict[int, str]:
        """Process id → worker id, of the workers that are alive for Redis."""
        found = {}
        for worker in self.client.zrange(f"{ROOT}:alive", 0, -1):
            if pid := self.client.hget(f"{ROOT}:worker:{worker}", "pid"):
                found[int(pid)] = worker
        return found

    async def _all_take_part(self) -> bool:
        known = self.registered()
        if {node.pid for node in self.workers} != known.keys():
            return False
        return all([await _answers(api) for api in self.apis])

    # Redis

    @contextlib.asynccontextmanager
    async def _hurting_redis(self) -> AsyncIterator[None]:
        async with self.redis_lock:
            with self.redis_hurt.during():
                yield

    async def restart_redis(self, *, kill: bool) -> None:
        async with self._hurting_redis():
            await asyncio.to_thread(self.redis.kill if kill else self.redis.stop)
            await asyncio.to_thread(self.redis.start)

    async def hang_redis(self, seconds: float) -> None:
        async with self._hurting_redis():
            pid = self.redis.pid
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(seconds)
            os.kill(pid, signal.SIGCONT)

    async def fill_disk(self, seconds: float) -> bool:
        """No file of Redis may grow. Returns whether its append-only file could not be written."""
        async with self._hurting_redis():
            pid = self.redis.pid
            files = (self.redis.directory / "appendonlydir").iterdir()
            most = min(file.stat().st_size for file in files if file.suffix == ".aof")
            _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, hard))
            try:
                await asyncio.sleep(seconds)
                return bool(self.client.info("persistence")["aof_last_write_status"] == "err")
            finally:
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))


async def until(
    condition: Callable[[], Any], what: str, seconds: float = BOUND, look: float = _LOOK
) -> Any:
    """The first true value of `condition`. Raises TimeoutError, which says what did not happen."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(sync_redis.RedisError, OSError):
            value = condition()
            if isinstance(value, Awaitable):
                value = await value
            if value:
                return value
        await asyncio.sleep(look)
    raise TimeoutError(f"{what} did not come within {seconds} s")


async def _answers(api: Api) -> bool:
    reader, writer = await asyncio.open_connection("127.0.0.1", api.door.port)
    try:
        writer.write(b"GET /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        async with asyncio.timeout(5):
            return b" 200 " in await reader.readline()
    except TimeoutError:
        return False
    finally:
        writer.close()


_PORTS = 500  # of each test process


def _free_port() -> int:
    """A port that stays free: no connection gets it, nor another test process (tests/conftest.py).

    The kernel gives connections ports from 32768 on.
    """
    own = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 8
    for port in random.sample(range(12_000 + own * _PORTS, 12_000 + (own + 1) * _PORTS), _PORTS):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise OSError("no port is free")


def _ignoring_xfsz(directory: Path) -> Path:
    """A server binary that lives on when a file may not grow; Python children would be killed."""
    script = directory / "valkey-server"
    script.write_text(f"#!/bin/sh\ntrap '' XFSZ\nexec {embedded._wheel_binary()} \"$@\"\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return script
