"""Ten times what the engines' slots can serve: how much is served, and how the rest is refused."""

from __future__ import annotations

import asyncio
import random
import statistics
import tempfile
import time
from pathlib import Path

from harness import final
from harness.catalogue import Ask, ask
from harness.clients import REFUSED, Attempt, Client, Manner, crowd
from harness.cluster import Cluster, Size
from harness.memory import sampled
from harness.report import Report

_SIZE = Size(slots=4, tick=0.1, max_queue=32)
_TOKENS = 25
_TIMES = 10  # the capacity
_WARM_UP = 6.0  # seconds
_REFUSED_MS = 100.0
_GOOD = 0.95
_JOB = _TOKENS * _SIZE.tick  # seconds
_SLACK = 0.5  # seconds


async def run(report: Report, *, seconds: float, seed: int) -> None:
    """Offer requests at a steady rate, whatever comes back."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as directory:
        async with Cluster(Path(directory), _SIZE) as cluster:
            client = Client(cluster.ports, random.Random(seed), expected=REFUSED)
            short = ask("a short one", temperature=0, max_tokens=_TOKENS)
            await crowd(client, 8, [(short, Manner())] * 16)  # both servers have had some
            rest = await final.begin(report, cluster, client)
            capacity = cluster.slots / (_TOKENS * _SIZE.tick)
            began = time.monotonic()
            async with sampled(cluster) as memory:
                offered = await _offer(client, short, capacity * _TIMES, _WARM_UP + seconds)
            memory.show(report)
            window = (began + _WARM_UP, began + _WARM_UP + seconds)
            accepted, answered = await _recover(client, short)
            await asyncio.wait(offered)
            idle = await client.attempt(short, Manner(), {})
            _figures(report, client.attempts, capacity, window)
            _recovered(report, "a request is accepted after", accepted, _JOB)
            queue = _SIZE.max_queue / capacity
            _recovered(report, "its first token after a full queue", answered, queue + _JOB)
            first = idle.pieces[0] - idle.began
            _recovered(report, "with the queue served, a first token after", first, _SIZE.tick)
            await final.check(report, cluster, client, rest)


async def _offer(
    client: Client, short: Ask, rate: float, seconds: float
) -> set[asyncio.Task[Attempt]]:
    began, sent = time.monotonic(), 0
    offered: set[asyncio.Task[Attempt]] = set()
    while (elapsed := time.monotonic() - began) < seconds:
        while sent < elapsed * rate:
            offered.add(asyncio.create_task(client.attempt(short, Manner(), {})))
            sent += 1
        await asyncio.sleep(0.01)
    return offered


async def _recover(client: Client, short: Ask) -> tuple[float, float]:
    """Seconds until a request that comes afterwards is accepted, and has its first token."""
    began = time.monotonic()
    while True:
        attempt = await client.attempt(short, Manner(), {})
        if attempt.how == "done":
            return attempt.began - began, attempt.pieces[0] - began
        await asyncio.sleep(0.1)


def _recovered(report: Report, what: str, seconds: float, least: float) -> None:
    """`least`: what it takes at the worst moment: slots that are in step, a full queue."""
    bound = least + _SLACK
    report.figure(
        f"after the overload: {what}",
        f"{seconds:.2f} s",
        f"{bound:.2f} s",
        within=seconds <= bound,
    )


def _figures(
    report: Report, attempts: list[Attempt], capacity: float, window: tuple[float, float]
) -> None:
    begin, end = window
    done = sum(begin <= each.ended < end for each in attempts if each.how == "done")
    share = done / (end - begin) / capacity
    offered = sum(begin <= each.began < end for each in attempts)
    report.row("overload: requests offered a second", f"{offered / (end - begin):.1f}")
    report.figure(
        f"goodput of {capacity:.1f} a second",
        f"{100 * share:.1f} %",
        f"{100 * _GOOD:.0f} %",
        within=share >= _GOOD,
    )
    refused = [1000 * (each.ended - each.began) for each in attempts if each.status == 429]
    p99 = statistics.quantiles(refused, n=100, method="inclusive")[98]
    report.figure(
        f"{len(refused)} refusals (429): p50, p99, max",
        f"{statistics.median(refused):.0f}, {p99:.0f}, {max(refused):.0f} ms",
        f"{_REFUSED_MS:.0f} ms",
        within=p99 <= _REFUSED_MS,
    )
    soon = sum(each <= _REFUSED_MS for each in refused) / len(refused)
    report.row(f"refused within {_REFUSED_MS:.0f} ms", f"{100 * soon:.2f} %")
    others = {each.how for each in attempts} - {"done", "rate_limit_exceeded"}
    report.violate(f"a request ended with {how}" for how in others)
