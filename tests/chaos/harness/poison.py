"""A job that ends every worker which runs it: what it may cost, and what its client is told."""

from __future__ import annotations

import random

from harness.catalogue import ask
from harness.clients import Client, Manner
from harness.cluster import ROOT, Cluster

MOST_WORKERS = 3  # that one job may cost


async def poison_job(cluster: Cluster, draw: random.Random) -> bool:
    """Send one. Raises RuntimeError if it ended otherwise than it must."""
    mark = f"poison {draw.getrandbits(64):x}"
    poison = ask(f"[[crash {draw.randint(1, 20)}]] {mark}", temperature=0)
    poison.breaks = True
    client = Client(cluster.ports, draw, within=cluster.size.request_timeout)
    # With its key it is sent again until it was given up, whatever else happens meanwhile.
    attempt = await client.request(poison, Manner(key=True))
    async with cluster.redis_lock:  # nobody hangs it meanwhile
        wrong = [*client.violations, *_wrong(cluster, mark, attempt.how)]
    if wrong:
        raise RuntimeError("; ".join(wrong))
    return True


def _wrong(cluster: Cluster, mark: str, how: str) -> list[str]:
    if how != "worker_crashed":
        return [f"its client was told {how}"]
    dead = cluster.client.zrange(f"{ROOT}:dead", 0, -1)
    letters = [job for job in dead if _has(cluster, job, mark)]
    if not letters:
        return ["it is no dead letter"]
    cost = {job: workers_lost(cluster, job) for job in letters}
    return [f"{job} cost {lost} workers" for job, lost in cost.items() if lost > MOST_WORKERS]


def _has(cluster: Cluster, job: str, mark: str) -> bool:
    return mark in (cluster.client.hget(f"{ROOT}:dead:{job}", "body") or "")


def workers_lost(cluster: Cluster, job: str) -> int:
    """Processes that ended while their engine ran this job, as the engines' journals say."""
    lines = [line for node in cluster.workers for line in cluster.journal(node.name).splitlines()]
    ends = [line.removeprefix("poisoned by ") for line in lines if line.startswith("poisoned by ")]
    return sum(sequence.startswith(f"{job}:") for sequence in ends)
