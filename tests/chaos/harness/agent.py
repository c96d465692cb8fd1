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
from collections import Counter
from pathlib import Path


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


def _tasks() -> Counter[str]:
    """The coroutines of all tasks that run; found by the collector, as we are in another thread."""
    tasks = [found for found in gc.get_objects() if isinstance(found, asyncio.Task)]
    return Counter(task.get_coro().__qualname__ for task in tasks if not task.done())


def _sockets() -> list[str]:
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(str(entry.readlink()))
    return found


def _rss_mb() -> float:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _status() -> dict:
    fds = _sockets()
    return {
        "pid": os.getpid(),
        "tasks": dict(_tasks()),
        "fds": len(fds),
        "sockets": sum(fd.startswith("socket:") for fd in fds),
        "rss_mb": round(_rss_mb(), 1),
    }


def serve(path: str) -> None:
    """Answer on a Unix socket, from a thread: also while the event loop is busy or stuck."""
    clocks = Clocks()
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
                connection.sendall(json.dumps(_status()).encode() + b"\n")

    threading.Thread(target=answer, name="chaos-agent", daemon=True).start()
