"""What must be true after a run, whatever was done to the cluster."""

from __future__ import annotations

from collections.abc import Iterable

from harness.audit import Audit, ran_twice
from harness.clients import Attempt, Client
from harness.cluster import BOUND, ROOT, Api, Cluster, until

_WITHOUT_TTL = {"alive", "apis", "due", "free", "queue"}  # sorted sets that the reaper empties
_CUT_WITHIN = 5.0  # seconds after its cause in which a client notices, on a slow machine
_MEMORY_MB = 64.0  # that a process may grow by; it is there to find leaks, not caches
_SOCKETS = 70  # two pools of 32 connections to Redis, and some to listen on


async def settled(cluster: Cluster) -> list[str]:
    """Wait until nothing goes on any more. Returns what still does after the bound."""
    for node in cluster.nodes:  # a fault may have left it dead a moment ago
        await until(lambda node=node: node.running, f"{node.name} running again")
    await cluster.whole()
    try:
        await until(lambda: not _goes_on(cluster), "quiet", 2 * BOUND, look=0.2)
    except TimeoutError:
        return _goes_on(cluster)
    return []


def _goes_on(cluster: Cluster) -> list[str]:
    client = cluster.client
    left = {kind: client.zrange(f"{ROOT}:{kind}", 0, -1) for kind in ("queue", "alone", "due")}
    found = [
        f"{len(jobs)} jobs are left in {kind}: {jobs[:3]}" for kind, jobs in left.items() if jobs
    ]
    for worker in client.zrange(f"{ROOT}:alive", 0, -1):
        if held := client.hgetall(f"{ROOT}:lease:{worker}"):
            found.append(f"{worker} holds {held}")
        if client.llen(f"{ROOT}:inbox:{worker}"):
            found.append(f"{worker} has hints that it did not take")
    if (free := client.zcard(f"{ROOT}:free")) != cluster.size.workers:
        found.append(f"{free} workers of {cluster.size.workers} are free")
    if waiting := client.hgetall(f"{ROOT}:waiting"):
        found.append(f"waiting is {waiting}")
    return found


def redis_is_clean(cluster: Cluster) -> list[str]:
    """Keys without a TTL, jobs that did not end, readers of jobs that have ended."""
    found = []
    client = cluster.client
    for name in client.scan_iter("qs:*", count=1000):
        kind = name.removeprefix(f"{ROOT}:").partition(":")[0]
        if client.ttl(name) == -1 and name != "qs:pools" and kind not in _WITHOUT_TTL:
            found.append(f"{name} has no TTL")
        if kind == "job" and (state := client.hget(name, "state")) in {
            "queued",
            "running",
            "orphaned",
        }:
            found.append(f"{name} is {state}")
        if kind == "by_api" and (left := client.smembers(name)):
            found.append(f"{name} still has {len(left)} jobs")
    return found


def audited(cluster: Cluster, *, ended: bool = True) -> Audit:
    """The audit's own findings, sequences that ran twice, and (`ended`) jobs without an end."""
    audit = Audit()
    audit.read(cluster)
    audit.violations += ran_twice(cluster)
    if ended:
        audit.violations += [f"job {job} has no end" for job in audit.open_jobs()]
    return audit


def explained(cluster: Cluster, clients: Iterable[Client]) -> list[str]:
    """Streams that were cut although nobody touched their server or the way to it."""
    apis = {api.name: api for api in cluster.apis}
    return [
        f"request {attempt.reply or '?'} at {attempt.api} was cut, and nothing explains it"
        for client in clients
        for attempt in client.attempts
        if attempt.how == "cut" and not _has_cause(attempt, apis[attempt.api])
    ]


def _has_cause(attempt: Attempt, api: Api) -> bool:
    causes = [*((at, at) for at in api.killed), *api.door.disturbed]
    return any(
        began < attempt.ended and attempt.began < ended + _CUT_WITHIN for began, ended in causes
    )


class Processes:
    """How every process was when it was idle and fresh, to compare with how it is in the end."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._idle: dict[str, dict] = {}
        self.growth_mb = 0.0
        self.most_mb = 0.0

    async def remember(self) -> None:
        for node in self._cluster.nodes:
            self._idle[node.name] = await self._ask(node)

    async def compare(self) -> list[str]:
        """Tasks, sockets and memory that were not given back."""
        found = []
        for node in self._cluster.nodes:
            found += await self._compared(node)
        return found

    async def _ask(self, node) -> dict:
        return await until(lambda: node.ask(do="status"), f"an answer of {node.name}")

    async def _compared(self, node) -> list[str]:
        before = self._idle[node.name]
        try:  # a heartbeat may be on its way just now
            await until(
                lambda: self._tasks_are_back(node), f"{node.name} without new tasks", 15, 0.3
            )
        except TimeoutError:
            now = await self._ask(node)
            return [f"{node.name} has new tasks: {_more(before['tasks'], now['tasks'])}"]
        now = await self._ask(node)
        found = []
        self.most_mb = max(self.most_mb, now["rss_mb"])
        if now["pid"] == before["pid"]:
            self.growth_mb = max(self.growth_mb, now["rss_mb"] - before["rss_mb"])
            if now["rss_mb"] > before["rss_mb"] + _MEMORY_MB:
                found.append(f"{node.name} grew from {before['rss_mb']} to {now['rss_mb']} MB")
        if now["sockets"] > _SOCKETS:
            found.append(f"{node.name} has {now['sockets']} sockets")
        return found

    async def _tasks_are_back(self, node) -> bool:
        now = await self._ask(node)
        return not _more(self._idle[node.name]["tasks"], now["tasks"])

    async def doors_are_closed(self) -> list[str]:
        """Client connections that nobody uses any more."""
        found = []
        for api in self._cluster.apis:
            try:
                await until(lambda api=api: not api.door.connections, "closed connections", 15)
            except TimeoutError:
                found.append(f"{api.name} keeps {api.door.connections} client connections open")
        return found


def _more(before: dict[str, int], now: dict[str, int]) -> dict[str, int]:
    return {name: count for name, count in now.items() if count > before.get(name, 0)}
