"""Inside a process under test: tells how it is, and lets its clocks jump."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import socket
import threading
import time
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

from redis.asyncio import ConnectionPool


class Clocks:
    """The wall clock and the lease clock of this process, each ahead by some seconds."""

    def __init__(self) -> None:
        self._wall = self._lease = 0.0
        real_time, real_clock = time.time, time.clock_gettime
        time.time = lambda: real_time() + self._wall
        time.clock_gettime = lambda clock: real_clock(clock) + self._lease

    def jump(self, *, wall: float = 0.0, lease: float = 0.0) -> None:
        self._wall += wall
        self._lease += lease


class Pools:
    """Every pool of connections to Redis that this process makes."""

    def __init__(self) -> None:
        self._pools: list[weakref.ref[ConnectionPool]] = []
        plain = ConnectionPool.__init__

        def init(pool: ConnectionPool, *args: Any, **options: Any) -> None:
            plain(pool, *args, **options)
            self._pools.append(weakref.ref(pool))

        ConnectionPool.__init__ = init

    def count(self) -> tuple[int, int]:
        """Connections that are open, and those that somebody has not given back."""
        pools = [pool for ref in list(self._pools) if (pool := ref()) is not None]
        taken = [connection for pool in pools for connection in list(pool._in_use_connections)]
        spare = [connection for pool in pools for connection in list(pool._available_connections)]
        return sum(each.is_connected for each in [*taken, *spare]), len(taken)


def _tasks() -> Counter[str]:
    """The coroutines of all tasks that run, but for those from before the process had started.

    The collector tells, as we are in another thread; it does not see what it has frozen.
    """
    tasks = [found for found in gc.get_objects() if isinstance(found, asyncio.Task)]
    return Counter(task.get_coro().__qualname__ for task in tasks if not task.done())


def _files() -> Counter[str]:
    """What is open, by kind: socket, pipe, or the name of a file."""
    found: Counter[str] = Counter()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found[str(entry.readlink()).partition(":")[0]] += 1
    return found


def _rss_mb() -> float:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _status(pools: Pools) -> dict[str, Any]:
    """`files` are those beside the connections to Redis, which a pool may keep for later."""
    files, (connected, taken) = _files(), pools.count()
    files["socket"] -= connected
    return {
        "pid": os.getpid(),
        "tasks": _tasks(),
        "files": files,
        "redis": connected,
        "taken": taken,
        "rss_mb": round(_rss_mb(), 1),
    }


def serve(path: str) -> None:
    """Answer on a Unix socket, from a thread: also while the event loop is busy or stuck."""
    clocks, pools = Clocks(), Pools()
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.suppress(FileNotFoundError):
        Path(path).unlink()
    listening.bind(path)
    listening.listen(8)

    def answer() -> None:
        while True:
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError, ValueError):
                asked = json.loads(connection.makefile().readline())
                if asked["do"] == "jump":
                    clocks.jump(wall=asked["wall"], lease=asked["lease"])
                connection.sendall(json.dumps(_status(pools)).encode() + b"\n")

    threading.Thread(target=answer, name="chaos-agent", daemon=True).start()
