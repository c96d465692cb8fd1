"""A running `queueserve up`: for one test, or one for all test processes of a run."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import redis as sync_redis

_OTHERS = 280.0  # seconds that the other test processes may go on using what this one has started


class Up:
    """A running `queueserve up`, what it has said, and what it says it is."""

    def __init__(self, data_dir, *options: str) -> None:
        self.data_dir = data_dir
        env = {
            name: value
            for name, value in os.environ.items()
            if name != "REDIS_URL" and not name.startswith("QUEUESERVE_")
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "queueserve.cli", "up", "--data-dir", str(data_dir), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=env | {"PYTHONUNBUFFERED": "1"},
        )
        self.said = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line

    def line(self, start: str) -> str:
        """What follows `start` on its line, once it is said; empty before."""
        found = re.search(rf"^ *{start} +(.*)\n", self.said, re.MULTILINE)
        return found.group(1) if found else ""

    @property
    def url(self) -> str:
        return self.line("API").removeprefix("starting on ")

    @property
    def redis_port(self) -> int:
        return int(self.line("Look in").split()[2])

    def redis(self) -> sync_redis.Redis:
        return sync_redis.Redis(port=self.redis_port, decode_responses=True)

    def workers(self) -> dict[str, int]:
        """Worker id → process id, as registered."""
        with self.redis() as client:
            keys = list(client.scan_iter("qs:{fake}:worker:*"))
            pids = [client.hget(key, "pid") for key in keys]  # None: it has left meanwhile
        return {
            key.rpartition(":")[2]: int(pid) for key, pid in zip(keys, pids, strict=True) if pid
        }

    def pids(self) -> list[int]:
        """The processes that must not outlive this one: Redis, the workers."""
        with self.redis() as client:
            return [client.info("server")["process_id"], *self.workers().values()]

    def end(self) -> int:
        """The exit status, after everything was said."""
        try:
            status = self.process.wait(timeout=60)
        finally:
            self.process.kill()
            self._reader.join(timeout=5)
        return status

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.end()
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextlib.contextmanager
def shared(home: Path, start: Callable[[Path], Up]) -> Iterator[str]:
    """The address of the one that all test processes with this directory share.

    The first to come starts it, and at its own end waits for the others. A process that is killed
    lets go of its locks.
    """
    home.mkdir(exist_ok=True)
    with (home / "users").open("a") as users, contextlib.ExitStack() as ours:
        with _alone(home):
            if not (home / "address").exists():
                up = start(home)
                ours.callback(up.close)
                ours.callback(_wait_for_others, home, users)
                (home / "address").write_text(up.url)
            fcntl.flock(users, fcntl.LOCK_SH)
            address = (home / "address").read_text()
        yield address


@contextlib.contextmanager
def _alone(home: Path) -> Iterator[None]:
    with (home / "alone").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _wait_for_others(home: Path, users: IO[str]) -> None:
    until = time.monotonic() + _OTHERS
    while time.monotonic() < until:
        with _alone(home), contextlib.suppress(BlockingIOError):
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (home / "address").unlink()  # whoever comes now starts another one
            return
        time.sleep(0.1)
