"""Every process is restarted, one after the other, while requests run: none of them may fail."""

from __future__ import annotations

import asyncio
import random
import signal
import tempfile
from collections import Counter
from pathlib import Path

from harness import final
from harness.catalogue import Ask, catalogue
from harness.clients import RETRIED, Client, Manner
from harness.cluster import Cluster, Node, Size, until
from harness.report import Report
from harness.storm import undisturbed

_AT_ONCE = 16
_RETRIES = 2  # these three are the openai library's
_FIRST_PAUSE = 0.5  # seconds
_LONGEST_PAUSE = 8.0


async def run(report: Report, *, seed: int) -> None:
    """Workers, API servers, Redis; clients try again as often as the openai library does."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as directory:
        async with Cluster(Path(directory), Size(seed=seed)) as cluster:
            client = Client(cluster.ports, random.Random(seed))
            asks = catalogue(30, client.draw)
            await undisturbed(cluster, client, asks)
            rest = await final.begin(report, cluster, client)
            stop = asyncio.Event()
            retries: Counter[int] = Counter()

            async def load() -> None:
                while not stop.is_set():
                    retries[await _as_library(client, client.draw.choice(asks))] += 1

            async with asyncio.TaskGroup() as group:
                for _ in range(_AT_ONCE):
                    group.create_task(load())
                for node in cluster.nodes:
                    await _restart(cluster, node)
                await cluster.restart_redis(kill=False)
                await cluster.whole()
                await asyncio.sleep(2)
                stop.set()
            report.row("requests while every process restarted", str(client.outcomes.total()))
            needed = ", ".join(f"{retries[count]} with {count}" for count in range(_RETRIES + 1))
            report.row("requests by retries needed", needed)
            failed = {how: n for how, n in client.outcomes.items() if how != "done"}
            report.violate(f"{count} requests ended with {how}" for how, count in failed.items())
            await final.check(report, cluster, client, rest)


async def _as_library(client: Client, ask: Ask) -> int:
    """Send it; returns how many retries it took, two at most (the library's default)."""
    pause = _FIRST_PAUSE
    for retries in range(_RETRIES + 1):
        attempt = await client.attempt(ask, Manner(), {})
        if attempt.how == "refused":  # what a load balancer does
            attempt = await client.attempt(ask, Manner(), {}, avoid=attempt.api)
        if attempt.how != "refused" and attempt.status not in RETRIED:
            break
        if retries < _RETRIES:
            await asyncio.sleep(attempt.retry_after or pause * client.draw.uniform(0.75, 1))
            pause = min(2 * pause, _LONGEST_PAUSE)
    client.outcomes[attempt.how] += 1
    return retries


async def _restart(cluster: Cluster, node: Node) -> None:
    await asyncio.sleep(1)
    before = node.pid
    node.signal(signal.SIGTERM)
    await until(lambda: node.pid != before, f"another process in the place of {node.name}")
    await cluster.whole()
