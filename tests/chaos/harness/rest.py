"""A cluster at rest, before a run and after it: what was taken must have been given back.

Everything is compared with how it was when the processes were fresh and had answered some requests;
nothing here is a bound that a leak could hide under, but for the memory of processes, which never
comes back to the byte. Of Redis' memory the keys' own is compared: what its allocator, buffers and
connections hold beside them is hundreds of times as much, and changes by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from harness.cluster import ROOT, Cluster, Node, until
from harness.report import Report

_SETTLED_WITHIN = 15.0  # seconds; a heartbeat, say, may be on its way just now
_LOOK = 0.3
PROCESS_MB = 48.0  # that a process may grow by: its allocator keeps what many requests needed
REDIS_BYTES = 4096  # that the keys may grow by: a hash may take another encoding
_OWN = 1  # connection to Redis that is the harness's
# What Redis keeps of ended jobs for some time, by design, and the audit.
_KEPT = (f"{ROOT}:job:*", f"{ROOT}:dead*", "chaos:audit")


class Rest:
    """Remembers a cluster at rest, and says what is more than it was."""

    def __init__(
        self,
        cluster: Cluster,
        *,
        within: float = _SETTLED_WITHIN,
        growth_mb: float = PROCESS_MB,
    ) -> None:
        self._cluster = cluster
        self._allowed_mb = growth_mb
        self._within = within  # seconds in which it must be as it was
        self._nodes: dict[str, dict[str, Any]] = {}
        self._redis: dict[str, Any] = {}
        self.growth_mb = 0.0
        self.most_mb = 0.0

    async def remember(self) -> None:
        """Before: the cluster must have settled. Deletes the audit, and ended jobs."""
        for node in self._cluster.nodes:
            self._nodes[node.name] = await _status(node)
        await until(self._all_registered, "every worker's registration there")
        self._redis = await self._redis_now()

    def _all_registered(self) -> bool:
        """A registration lapses when a busy machine delays its worker, and comes back."""
        found = self._cluster.client.scan_iter(f"{ROOT}:worker:*", count=1000)
        return len(list(found)) == self._cluster.size.workers

    async def compare(self) -> list[str]:
        """After, when it has settled again and the audit was read: what was not given back."""
        found = [each for node in self._cluster.nodes for each in await self._node(node)]
        return found + await self._redis_more()

    def show(self, report: Report) -> None:
        """Rows for what was compared."""
        memory = f"{self.most_mb:.0f} MB / {self.growth_mb:.0f} MB"
        report.row("memory of a process: most / growth", memory)
        now = self._redis["now"]
        report.row(
            "Redis at rest: clients before / after",
            f"{self._redis['clients']} / {now['clients']} ({now['held']} held by processes)",
        )
        report.row(
            "Redis at rest: bytes of all keys before / after",
            f"{self._redis['bytes']} / {now['bytes']}",
        )

    async def _node(self, node: Node) -> list[str]:
        before = self._nodes[node.name]
        now = before

        async def back() -> bool:
            nonlocal now
            now = await _status(node)
            return not _more(before, now)

        try:
            await until(back, f"{node.name} as it was", self._within, _LOOK)
        except TimeoutError:
            return [f"{node.name} has more than before: {_more(before, now)}"]
        self.most_mb = max(self.most_mb, now["rss_mb"])
        self.growth_mb = max(self.growth_mb, now["rss_mb"] - before["rss_mb"])
        if now["rss_mb"] > before["rss_mb"] + self._allowed_mb:
            return [f"{node.name} grew from {before['rss_mb']} to {now['rss_mb']} MB"]
        return []

    async def _redis_more(self) -> list[str]:
        before, found = self._redis, ["Redis was not looked at"]

        async def back() -> bool:
            nonlocal found
            before["now"] = now = await self._redis_now()
            found = _redis_found(before, now)
            return not found

        try:
            await until(back, "Redis as it was", self._within, _LOOK)
        except TimeoutError:
            return found
        return []

    async def _redis_now(self) -> dict[str, Any]:
        """What is left once that is gone which goes by itself: ended jobs, the audit."""
        client = self._cluster.client
        held = sum([(await _status(node))["redis"] for node in self._cluster.nodes])
        for pattern in _KEPT:
            for name in client.scan_iter(pattern, count=1000):
                client.delete(name)
        names = list(client.scan_iter(count=1000))
        return {
            "held": held,
            "clients": len(client.client_list()),
            "bytes": sum(client.memory_usage(name, samples=0) or 0 for name in names),
            "keys": Counter(map(_kind, names)),
            "channels": len(client.pubsub_channels()),
        }


def _kind(name: str) -> str:
    """`qs:{m}:worker:vm-1-ab` → `worker`."""
    return name.removeprefix(f"{ROOT}:").partition(":")[0]


def _redis_found(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    found = []
    if now["clients"] > now["held"] + _OWN:
        found.append(f"Redis has {now['clients']} clients, processes hold {now['held']}")
    if more := now["keys"] - before["keys"]:
        found.append(f"Redis has more keys than before: {dict(more)}")
    if now["channels"] > before["channels"]:
        found.append(f"Redis has {now['channels']} channels, and had {before['channels']}")
    if now["bytes"] > before["bytes"] + REDIS_BYTES:
        found.append(f"the data of Redis grew from {before['bytes']} to {now['bytes']} bytes")
    return found


async def _status(node: Node) -> dict[str, Any]:
    status = await until(lambda: node.ask(do="status"), f"an answer of {node.name}")
    return {**status, "tasks": Counter(status["tasks"]), "files": Counter(status["files"])}


def _more(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Tasks, open files and connections beyond those of before; empty if there are none."""
    more: dict[str, Any] = {
        kind: dict(found) for kind in ("tasks", "files") if (found := now[kind] - before[kind])
    }
    if now["taken"] > before["taken"]:
        more["connections not given back"] = now["taken"] - before["taken"]
    return more
