"""What must be true after a run, whatever was done to the cluster."""

from __future__ import annotations

from harness.audit import Audit, ran_twice
from harness.clients import Client
from harness.cluster import BOUND, ROOT, Cluster, until


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


async def all_keys_have_a_ttl(cluster: Cluster) -> list[str]:
    """Wait until they do: a set that was empty gets its TTL with the reaper's next look."""
    try:
        await until(lambda: not _lasting(cluster), "a TTL on every key", BOUND, look=0.5)
    except TimeoutError:
        return [f"{name} has no TTL" for name in _lasting(cluster)]
    return []


def _lasting(cluster: Cluster) -> list[str]:
    client = cluster.client
    return [name for name in client.scan_iter("qs:*", count=1000) if client.ttl(name) == -1]


def redis_is_clean(cluster: Cluster) -> list[str]:
    """Jobs that did not end, readers of jobs that have ended."""
    found = []
    client = cluster.client
    for name in client.scan_iter("qs:*", count=1000):
        kind = name.removeprefix(f"{ROOT}:").partition(":")[0]
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


def accepted(audit: Audit, client: Client) -> list[str]:
    """Requests that a client was told are accepted, and whose jobs Redis has never seen."""
    known = audit.choices()
    return [
        f"request {attempt.reply} was accepted, and Redis has not all of its jobs"
        for attempt in client.attempts
        if attempt.reply and len(known.get(attempt.reply.rpartition("-")[2], ())) < attempt.choices
    ]


async def doors_are_closed(cluster: Cluster) -> list[str]:
    """Client connections that nobody uses any more."""
    found = []
    for api in cluster.apis:
        try:
            await until(lambda api=api: not api.door.connections, "closed connections", 15)
        except TimeoutError:
            found.append(f"{api.name} keeps {api.door.connections} client connections open")
    return found
