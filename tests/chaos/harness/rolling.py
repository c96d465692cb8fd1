"""Every process is restarted, one after the other, while requests run: none of them may fail."""

from __future__ import annotations

import asyncio
import random
import signal
import tempfile
from pathlib import Path

from harness.catalogue import catalogue
from harness.clients import Client, Manner
from harness.cluster import Cluster, Node, Size, until
from harness.report import Report
from harness.storm import undisturbed

_AT_ONCE = 16


async def run(report: Report, *, seed: int) -> None:
    """Workers, API servers, Redis; clients try again as the openai library does."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as directory:
        async with Cluster(Path(directory), Size(seed=seed)) as cluster:
            client = Client(cluster.ports, random.Random(seed))
            asks = catalogue(30, client.draw)
            await undisturbed(cluster, client, asks)
            client.outcomes.clear()
            stop = asyncio.Event()

            async def load() -> None:
                while not stop.is_set():
                    await client.request(client.draw.choice(asks), Manner())

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
            report.violate(client.violations)
            failed = {how: n for how, n in client.outcomes.items() if how != "done"}
            report.violate(f"{count} requests ended with {how}" for how, count in failed.items())
            report.violate(found for node in cluster.nodes for found in node.unexpected)


async def _restart(cluster: Cluster, node: Node) -> None:
    await asyncio.sleep(1)
    before = node.pid
    node.signal(signal.SIGTERM)
    await until(lambda: node.pid != before, f"another process in the place of {node.name}")
    await cluster.whole()
