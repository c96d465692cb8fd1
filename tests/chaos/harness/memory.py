"""What processes and Redis take while something lasts, looked at every second."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

from harness.cluster import Cluster
from harness.report import Report

PROCESS_MB = 64.0  # that a process may have taken more than before, at the worst moment
REDIS_MB = 32.0
_EVERY = 1.0  # seconds


class Memory:
    """The peaks since it was made."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._before = self._now()
        self._most = dict(self._before)
        self.looks = 0

    def look(self) -> None:
        for name, megabytes in self._now().items():
            self._most[name] = max(self._most.get(name, 0.0), megabytes)
        self.looks += 1

    def _now(self) -> dict[str, float]:
        nodes = {node.name: rss_mb(node.pid) for node in self._cluster.nodes if node.running}
        used = self._cluster.client.info("memory")["used_memory"]
        return {**nodes, "Redis": used / 2**20}

    def grown(self) -> dict[str, float]:
        """By how many MB each has grown at its peak."""
        return {name: most - self._before.get(name, 0.0) for name, most in self._most.items()}

    def show(self, report: Report) -> None:
        """Figures; beyond its bound a growth is a violation: it does not depend on the machine."""
        grown = self.grown()
        redis = grown.pop("Redis")
        worst = max(grown, key=lambda name: grown[name])
        self._figure(report, worst, grown[worst], PROCESS_MB)
        self._figure(report, "Redis", redis, REDIS_MB)

    def _figure(self, report: Report, name: str, grown: float, bound: float) -> None:
        report.figure(
            f"memory in {self.looks} looks: peak of {name} / above before",
            f"{self._most[name]:.0f} / {grown:.1f} MB",
            f"{bound:.0f} MB above before",
            within=grown <= bound,
        )
        if grown > bound:
            report.violate([f"{name} took {grown:.1f} MB more than before"])


def rss_mb(pid: int) -> float:
    """What a process has in memory, shared pages included."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextlib.asynccontextmanager
async def sampled(cluster: Cluster) -> AsyncIterator[Memory]:
    """Look at it every second."""
    memory = Memory(cluster)

    async def looking() -> None:
        while True:
            await asyncio.sleep(_EVERY)
            memory.look()

    task = asyncio.create_task(looking())
    try:
        yield memory
    finally:
        task.cancel()
        await asyncio.wait([task])
    if not task.cancelled():
        task.result()  # it ended too early: say why
    memory.look()
