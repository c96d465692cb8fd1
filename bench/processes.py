"""Process trees of a chain: started, measured, ended."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from queueserve.tether import Tether

_PATIENCE = 120.0  # seconds for a process to answer, or to end: LiteLLM takes half a minute


class Process:
    """One process and its children; its output goes to `log`."""

    def __init__(self, command: Sequence[str], log: Path, env: Mapping[str, str]) -> None:
        self.log = log
        with log.open("wb") as out:
            self._popen = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **env}
            )
        self.pid = self._popen.pid
        self._tether = Tether(self.pid)
        self._tether.__enter__()

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._popen.poll() is None

    def stop(self) -> None:
        """End it and its children, politely first."""
        children = _tree(self.pid)[1:]
        self._popen.terminate()
        try:
            self._popen.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        self._tether.__exit__(None, None, None)
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_seconds(pid: int) -> float:
    """CPU time of a process tree so far, user and system, ended children included."""
    total = 0.0
    for process in _tree(pid):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    root = _tree(pid)[:1]
    for process in root:
        times = process.cpu_times()
        total += times.children_user + times.children_system
    return total


def memory(pid: int) -> int:
    """Bytes of a process tree (PSS: shared pages are divided among those who share them)."""
    total = 0
    for process in _tree(pid):
        with suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().pss
    return total


def own_seconds(pid: int, file: Path) -> float:
    """The CPU time of the bench engine in process `pid`, which writes it to `file`."""
    file.unlink(missing_ok=True)
    os.kill(pid, signal.SIGUSR1)
    return float(wait_for(lambda: file.exists() and file.read_text(), "the engine's time"))


def wait_for(condition: Callable[[], object], what: str, *, seconds: float = _PATIENCE) -> str:
    """The first true value of `condition`, as text. Raises TimeoutError."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if value := condition():
            return str(value)
        time.sleep(0.02)
    raise TimeoutError(f"{what}: not within {seconds:g} s")
