"""What was taken for a moment, and given back, shows in the peak."""

from __future__ import annotations

import asyncio

from harness import memory
from harness.cluster import Cluster, Size
from harness.report import Report


async def test_a_peak_beyond_its_bound_is_found(tmp_path):
    report = Report("memory")
    async with Cluster(tmp_path, Size(apis=1, workers=1)) as cluster:
        async with memory.sampled(cluster) as still:
            await asyncio.sleep(1.5)
        still.show(report)
        assert report.violations == []

        async with memory.sampled(cluster) as peak:
            cluster.client.set("much", b"x" * int(memory.REDIS_MB * 1.2 * 2**20), ex=60)
            await asyncio.sleep(1.5)
            cluster.client.delete("much")
            await asyncio.sleep(1.5)
        peak.show(report)
        assert peak.looks >= 3
        assert ["Redis took" in each for each in report.violations] == [True]
