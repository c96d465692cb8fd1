"""`queueserve up`: an embedded Redis, an API server and workers, each a process, kept running.

Workers are started by name (`python -m workers.cli`), not imported. What ends by itself is started
again, and a worker that ended has its jobs reaped at once. Everything ends with this process, also
when that is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import httpx
from redis.asyncio import Redis

from queueserve.child import Child
from queueserve.errors import QueueServeError, RedisUnavailableError
from queueserve.queue.address import shown
from queueserve.queue.connection import open_redis
from queueserve.queue.directory import known_cards
from queueserve.queue.embedded import EmbeddedRedis
from queueserve.queue.inspect import snapshot
from queueserve.queue.keys import Keys
from queueserve.queue.recovery import declare_dead
from queueserve.welcome import Address, welcome

log = logging.getLogger(__name__)

_LOOK = 0.05  # seconds between looks at what is not ready yet
_REDIS_PAUSE = 1.0  # seconds before a Redis that ended starts again


@dataclass(frozen=True, slots=True, kw_only=True)
class UpSettings:
    """What to run; times in seconds."""

    host: str
    port: int  # 0: any free one
    data_dir: Path
    redis_url: str | None  # None: an embedded one
    redis_port: int | None  # None: 6379, or the next free one
    prefix: str
    heartbeat_timeout: float
    grace: float
    workers: int
    model: str  # as shown while it loads
    tls: bool
    keyed: bool  # requests need an API key
    api_arguments: tuple[str, ...]
    worker_arguments: tuple[str, ...]
    secrets: Mapping[str, str]  # environment variables of the API server


class UpError(QueueServeError):
    """Something that `queueserve up` needs is not to be had."""

    code = "up"


class Supervisor:
    """Owns the processes, from the start of Redis to its end."""

    def __init__(self, settings: UpSettings) -> None:
        self._settings = settings
        self._began = time.monotonic()
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._embedded: EmbeddedRedis | None = None
        self._embedded_lock = asyncio.Lock()  # one thread at a time starts or stops it
        self._redis: Redis | None = None
        self._api: list[Child] = []
        self._workers: list[Child] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """Run until SIGINT or SIGTERM. Raises QueueServeError, ChildConfigurationError."""
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._asked_to_stop)
        port = _free_port(self._settings.host, self._settings.port)
        try:
            redis_url = await self._find_redis()
            self._start_children(redis_url, port)
            await self._until_stopped()
        finally:
            await self._end()

    def _asked_to_stop(self) -> None:
        if self._stop.is_set():
            self._hurry.set()
            return
        self._stop.set()
        with contextlib.suppress(OSError):  # nobody reads us any more: stop all the same
            click.echo("Stopping: what runs may finish. Once more to stop at once.")

    def _keep(self, task: Coroutine[None, None, None]) -> None:
        self._tasks.append(asyncio.create_task(task))

    async def _until_stopped(self) -> None:
        """Wait for the signal, or for a task that cannot go on."""
        stopped = asyncio.create_task(self._stop.wait())
        tasks = {stopped, *self._tasks}
        while not stopped.done():
            done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()

    async def _end(self) -> None:
        """End everything: the API server first, as its last requests need workers and Redis."""
        self._stop.set()
        for children in (self._api, self._workers):
            await asyncio.gather(
                *(child.stop(hurry=self._hurry, grace=self._settings.grace) for child in children)
            )
        if self._embedded is not None:
            async with self._embedded_lock:
                await asyncio.to_thread(self._embedded.stop)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._redis is not None:
            await self._redis.aclose()

    # Redis

    async def _find_redis(self) -> str:
        if self._settings.redis_url is not None:
            click.echo(f"Redis    at {shown(self._settings.redis_url)}")
            return self._settings.redis_url
        directory = self._settings.data_dir / "redis"
        click.echo(f"Redis    starting, with its data in {directory}")
        self._embedded = EmbeddedRedis(directory, self._settings.redis_port)
        async with self._embedded_lock:
            await asyncio.to_thread(self._embedded.start)
        self._keep(self._keep_redis_running(self._embedded))
        return self._embedded.url

    async def _keep_redis_running(self, server: EmbeddedRedis) -> None:
        while True:
            status = await asyncio.to_thread(server.wait)
            async with self._embedded_lock:
                if self._stop.is_set():
                    return
                log.warning("Redis ended with status %d; it starts again", status)
                await asyncio.sleep(_REDIS_PAUSE)
                await asyncio.to_thread(server.start)

    # Children

    def _start_children(self, redis_url: str, port: int) -> None:
        settings = self._settings
        self._redis = open_redis(redis_url)
        scheme = "https" if settings.tls else "http"
        address = Address(scheme, settings.host, port, redis_url, keyed=settings.keyed)
        # Everybody can read a command line, and a URL may hold a password.
        env = {**os.environ, "QUEUESERVE_REDIS_URL": redis_url}
        for name in settings.secrets:
            env.pop(name, None)
        click.echo(f"API      starting on {address.url}")
        where = ("--host", settings.host, "--port", str(port))
        command = _python("queueserve.cli", "serve", *where, *settings.api_arguments)
        api_env = {**env, **settings.secrets}
        self._api = [Child("the API server", command, env=api_env, ended=_nothing_to_do)]
        click.echo(f"Worker   loading {settings.model}")
        command = _python("workers.cli", *settings.worker_arguments)
        self._workers = [
            Child(f"worker {number}", command, env=env, ended=self._worker_ended)
            for number in range(1, settings.workers + 1)
        ]
        for child in (*self._api, *self._workers):
            self._keep(child.keep_running())
        self._keep(self._tell_when_ready(self._redis, address))

    async def _worker_ended(self, pid: int) -> None:
        """Give its jobs to other workers now, not when its heartbeat timeout is over."""
        if self._redis is None:
            return
        try:
            await declare_dead(
                self._redis,
                Keys(self._settings.prefix),
                f"{socket.gethostname()}-{pid}",
                heartbeat_timeout=self._settings.heartbeat_timeout,
            )
        except RedisUnavailableError as error:
            log.warning("a worker died while Redis was away: %s", error.message)

    # Progress

    async def _tell_when_ready(self, redis: Redis, address: Address) -> None:
        """Say so when the API answers and the first worker is there, and when others join."""
        waiting = list(self._workers)
        async with httpx.AsyncClient(base_url=address.url, verify=False) as api:  # noqa: S501 - ourselves
            while waiting and not self._stop.is_set():
                await asyncio.sleep(_LOOK)
                found = await self._registered(redis)
                joined = [child for child in waiting if child.pid in found]
                if not joined or not await _is_ready(api):
                    continue
                if len(waiting) == len(self._workers):
                    click.echo(f"Ready    after {time.monotonic() - self._began:.1f} s")
                    model = found[joined[0].pid]
                    click.echo(welcome(address, model, chats=await self._chats(redis, model)))
                waiting = [child for child in waiting if child not in joined]
                if self._settings.workers > 1:
                    there = self._settings.workers - len(waiting)
                    click.echo(f"Workers  {there} of {self._settings.workers} are there")

    async def _chats(self, redis: Redis, model: str) -> bool:
        try:
            cards = await known_cards(redis, Keys(self._settings.prefix))
        except RedisUnavailableError:
            return True
        return all("chat" in card.tasks for card in cards if card.name == model)

    async def _registered(self, redis: Redis) -> dict[int | None, str]:
        """Process id → model, of the workers on this machine."""
        try:
            seen = await snapshot(redis, self._settings.prefix)
        except RedisUnavailableError:
            return {}
        host = socket.gethostname()
        return {
            worker.pid: model.name
            for model in seen.models
            for worker in model.workers
            if worker.host == host
        }


def _python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


async def _nothing_to_do(_pid: int) -> None:
    """An API server's streams end with it; its jobs are cancelled when its registration ends."""


async def _is_ready(api: httpx.AsyncClient) -> bool:
    try:
        return (await api.get("/ready")).is_success
    except httpx.HTTPError:
        return False


def _free_port(host: str, port: int) -> int:
    """Give `port`, or any free one for 0. Raises UpError if it is taken, before anything starts."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.create_server(address[:2], family=family) as probe:
            return int(probe.getsockname()[1])
    except OSError as error:
        raise UpError(
            f"cannot listen on {host}:{port} ({error.strerror}); choose another one with --port"
        ) from error
