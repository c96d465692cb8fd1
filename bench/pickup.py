"""Pick-up on an idle system: how long until a submitted job is held by a worker.

Also until its first event is back. Both ends run in this one process, on a real embedded Redis.

    python bench/pickup.py [--jobs 500]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from queueserve.protocol import Job, Sampling
from queueserve.queue.consumer import Assignment, Consumer
from queueserve.queue.embedded import EmbeddedRedis
from queueserve.queue.plane import open_control_plane
from workers.engines.fake import FakeEngine
from workers.settings import WorkerSettings
from workers.worker import Worker

PAUSE = 0.005  # seconds between jobs: the system is idle again


async def measure(url: str, jobs: int) -> tuple[list[float], list[float]]:
    """Seconds until held, and until the first event, for each job."""
    stop = asyncio.Event()
    settings = WorkerSettings(redis_url=url, model_names=("m",))
    worker = Worker(FakeEngine(tick=0), settings)
    serving = asyncio.create_task(worker.run(stop))
    began: dict[str, float] = {}
    held: dict[str, float] = {}
    first: list[float] = []
    async with open_control_plane(url) as plane:
        while not await plane.directory.list():  # noqa: ASYNC110 - start-up, once
            await asyncio.sleep(0.01)
        assign = worker.runner.assign

        def noted(assignment: Assignment, consumer: Consumer) -> None:
            job = assignment.job.id
            held.setdefault(job, time.perf_counter() - began[job])
            assign(assignment, consumer)

        worker.runner.assign = noted  # type: ignore[method-assign]
        for number in range(jobs):
            sampling = Sampling(temperature=0, max_tokens=1, ignore_eos=True)
            job = Job(
                id=f"j{number}",
                pool="m",
                model="m",
                kind="completion",
                prompt=(1, 2, 3),
                sampling=sampling,
            )
            began[job.id] = time.perf_counter()
            stream = await plane.owner.open(job)
            await anext(stream)
            first.append(time.perf_counter() - began[job.id])
            async for _ in stream:
                pass
            await asyncio.sleep(PAUSE)
    stop.set()
    await serving
    return list(held.values()), first


def line(name: str, seconds: list[float]) -> str:
    """Percentiles in milliseconds."""
    cuts = statistics.quantiles(seconds, n=100)
    return f"{name:<28} p50 {cuts[49] * 1e3:6.2f} ms   p99 {cuts[98] * 1e3:6.2f} ms"


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=500)
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as scratch,
        EmbeddedRedis(Path(scratch), port=0) as server,
    ):
        held, first = asyncio.run(measure(server.url, arguments.jobs))
    print(line("submit -> worker holds it", held))
    print(line("submit -> first event", first))


if __name__ == "__main__":
    main()
