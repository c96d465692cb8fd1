"""Nothing is hurt and nothing ends: what a process keeps of each request adds up, and shows.

In a storm most processes are young. Here the first half of the requests warms all of them up; after
the second half they must have what they had, and their memory may have grown by what an allocator
moves, not by something for each request.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

from harness import final
from harness.catalogue import Ask, catalogue
from harness.clients import Client, Manner, crowd
from harness.cluster import Cluster, Size
from harness.report import Report
from harness.storm import undisturbed

_AT_ONCE = 32
_ASKS = 30
_GROWTH_MB = 4.0  # of 10,000 requests at two API servers: 840 bytes for each that it has seen
_MANNERS = (Manner(), Manner(), Manner(key=True), Manner(vanish_at=5))


async def run(report: Report, *, requests: int, seed: int) -> None:
    """Send `requests`, and compare the cluster after the second half with that after the first."""
    size = Size(tick=0.002, slots=16, heartbeat=15.0, seed=seed)
    with tempfile.TemporaryDirectory(prefix="chaos-") as directory:
        async with Cluster(Path(directory), size) as cluster:
            client = Client(cluster.ports, random.Random(seed))
            asks = catalogue(_ASKS, client.draw)
            await undisturbed(cluster, client, asks)
            await crowd(client, _AT_ONCE, _work(client, asks, requests // 2))
            rest = await final.begin(report, cluster, client, growth_mb=_GROWTH_MB)
            await crowd(client, _AT_ONCE, _work(client, asks, requests // 2))
            report.row("requests before / between the looks", f"{requests // 2} / {requests // 2}")
            report.count("request ended with", client.outcomes)
            await final.check(report, cluster, client, rest)
            report.keep_logs(Path(directory))


def _work(client: Client, asks: list[Ask], requests: int) -> Iterator[tuple[Ask, Manner]]:
    for _ in range(requests):
        yield client.draw.choice(asks), client.draw.choice(_MANNERS)
