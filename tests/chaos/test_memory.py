"""What was taken for a moment, and given back, shows in the peak."""

from __future__ import annotations

from harness import memory
from harness.cluster import Cluster, Size, until
from harness.report import Report


async def looked(sampled: memory.Memory, times: int) -> None:
    await until(lambda: sampled.looks >= times, "a look")


async def test_a_peak_beyond_its_bound_is_found(tmp_path):
    report = Report("memory")
    async with Cluster(tmp_path, Size(apis=1, workers=1)) as cluster:
        async with memory.sampled(cluster) as still:
            await looked(still, 2)
        still.show(report)
        assert report.violations == []

        async with memory.sampled(cluster) as peak:
            cluster.client.set("much", b"x" * int(memory.REDIS_MB * 1.2 * 2**20), ex=60)
            await looked(peak, peak.looks + 2)
            cluster.client.delete("much")
            await looked(peak, peak.looks + 2)
        peak.show(report)
        assert ["Redis took" in each for each in report.violations] == [True]
