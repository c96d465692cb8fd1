"""How long a stream pauses when its worker dies, and when it leaves."""

from __future__ import annotations

import asyncio
import random
import signal
import statistics
import tempfile
import time
from pathlib import Path

from harness import final
from harness.catalogue import Ask, ask
from harness.clients import Attempt, Client, Manner
from harness.cluster import ROOT, Cluster, Node, Size, until
from harness.report import Report

_STREAMS = 12
_TOKENS = 250
_JUST_BEFORE = 0.05  # seconds; what was on its way at the kill may still arrive
_CLEAN_MS = 100.0


async def run(report: Report, *, times: int, seed: int, heartbeat: float) -> None:
    """Kill a worker `times` times and let one leave as often, each under streams."""
    size = Size(apis=1, seed=seed, heartbeat=heartbeat, grace=0.0)
    with tempfile.TemporaryDirectory(prefix="chaos-") as directory:
        async with Cluster(Path(directory), size) as cluster:
            client = Client(cluster.ports, random.Random(seed))
            long = ask("a long one", temperature=0, max_tokens=_TOKENS)
            await client.request(long)
            rest = await final.begin(report, cluster, client)
            load = [asyncio.create_task(_endless(client, long)) for _ in range(_STREAMS)]
            try:
                killed = await _gaps(cluster, client, signal.SIGKILL, times)
                left = await _gaps(cluster, client, signal.SIGTERM, times)
            finally:
                for task in load:
                    task.cancel()
                await asyncio.wait(load)
            ended = {attempt.how for attempt in client.attempts if attempt.ended}
            report.violate(f"a stream ended with {how}" for how in ended - {"done", "refused"})
            await final.check(report, cluster, client, rest)
    _figures(report, killed, left, heartbeat)


def _figures(report: Report, killed: list[float], left: list[float], heartbeat: float) -> None:
    bound = heartbeat + 1
    report.figure(
        f"pause of {len(killed)} streams, worker killed: p50, p99, max",
        ", ".join(f"{gap:.2f}" for gap in _spread(killed)) + " s",
        f"{bound:.0f} s at p99",
        within=_spread(killed)[1] <= bound,
    )
    milliseconds = [1000 * gap for gap in _spread(left)]
    report.figure(
        f"pause of {len(left)} streams, worker left: p50, p99, max",
        ", ".join(f"{gap:.0f}" for gap in milliseconds) + " ms",
        f"{_CLEAN_MS:.0f} ms",
        within=milliseconds[1] <= _CLEAN_MS,
    )


def _spread(values: list[float]) -> tuple[float, float, float]:
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return cuts[49], cuts[98], max(values)


async def _endless(client: Client, long: Ask) -> None:
    while True:
        await client.request(long, Manner())


async def _gaps(
    cluster: Cluster, client: Client, number: signal.Signals, times: int
) -> list[float]:
    gaps: list[float] = []
    for at in range(times):
        node = cluster.workers[at % len(cluster.workers)]
        jobs = await until(lambda node=node: _streaming(cluster, client, node), "streams")
        when = time.monotonic()
        node.signal(number)
        await asyncio.sleep(0.2)
        await cluster.whole()
        await until(lambda jobs=jobs, when=when: all(_went_on(job, when) for job in jobs), "all")
        gaps += [_gap(attempt, when) for attempt in jobs]
        # A job that loses two workers is suspected, and waits until it can run alone.
        await until(lambda jobs=jobs: all(job.ended for job in jobs), "their ends")
    return gaps


def _streaming(cluster: Cluster, client: Client, node: Node) -> list[Attempt]:
    """The attempts whose jobs this worker runs, if there are some and all have begun."""
    held = cluster.client.hkeys(f"{ROOT}:lease:{cluster.registered()[node.pid]}")
    replies = {job.rpartition("-")[0] for job in held}
    now = time.monotonic()
    found = [
        attempt
        for attempt in client.attempts
        if attempt.reply in replies and not attempt.ended and now - attempt.began < _TOKENS * 0.01
    ]
    return found if len(found) > 1 else []


def _went_on(attempt: Attempt, when: float) -> bool:
    return attempt.pieces[-1] > when + _JUST_BEFORE


def _gap(attempt: Attempt, when: float) -> float:
    """Between the last piece of the old worker and the first one of the next."""
    after = next(at for at in attempt.pieces if at > when + _JUST_BEFORE)
    before = max(at for at in attempt.pieces if at < after)
    return after - max(before, when)
