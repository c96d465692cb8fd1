"""Load, and faults at random moments; then everything is checked."""

from __future__ import annotations

import asyncio
import itertools
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness import final
from harness.catalogue import Ask, ask, catalogue
from harness.clients import Client, Manner, crowd
from harness.cluster import Cluster, Size
from harness.faults import FAULTS, Fault, Schedule
from harness.report import Report

_TRIED_FOR = 60.0  # seconds; Redis may hang for 20 of them
_HURTFUL = (  # prompts that disturb engines, and whether they break them
    ("[[crash {}]] a poison job", True),
    ("[[oom {}]] a job that does not fit", True),
    ("[[stall {} 2]] a job at which the engine pauses", False),
)


@dataclass(frozen=True, kw_only=True)
class Storm:
    """How much of it."""

    requests: int
    faults: int
    pause: float  # seconds between two faults, on average
    seed: int
    at_once: int = 32
    kinds: Sequence[Fault] = field(default_factory=lambda: FAULTS)
    hurtful: float = 0.003  # of the requests break an engine
    size: Size = field(default_factory=Size)


def _manner(draw: random.Random) -> Manner:
    chance = draw.random()
    if chance < 0.35:
        return Manner(key=True)
    if chance < 0.45:
        return Manner(vanish_at=draw.randint(1, 20))
    if chance < 0.5:
        return Manner(pause_at=draw.randint(1, 5), pause=draw.uniform(0.5, 3))
    return Manner()


def _work(
    storm: Storm,
    asks: list[Ask],
    draw: random.Random,
    hurting: asyncio.Task[None],
    kinds: Counter[str],
) -> Iterator[tuple[Ask, Manner]]:
    """Requests without an end, until there were enough of them and of faults."""
    for number in itertools.count():
        if number >= storm.requests and hurting.done():
            return
        if draw.random() < storm.hurtful:
            prompt, breaks = draw.choice(_HURTFUL)
            kinds[prompt.format("n")] += 1
            hurtful = ask(prompt.format(draw.randint(1, 20)), temperature=0)
            yield replace(hurtful, breaks=breaks), Manner()
        else:
            manner = _manner(draw)
            kinds[manner.name] += 1
            yield draw.choice(asks), manner


async def undisturbed(cluster: Cluster, client: Client, asks: list[Ask]) -> None:
    """Fill in what must be answered, from a run in which nothing happens."""
    await crowd(client, 4, [(each, Manner()) for each in asks])
    missing = [each for each in asks if len(each.expected) != each.choices]
    if missing or client.violations:
        raise RuntimeError(f"the undisturbed run failed: {client.violations} {missing[:1]}")


async def run(storm: Storm, report: Report) -> None:
    """One storm; what it finds goes into the report."""
    draw = random.Random(f"storm {storm.seed}")
    asks = catalogue(min(60, max(12, storm.requests // 8)), draw)
    with tempfile.TemporaryDirectory(prefix="chaos-") as directory:
        async with Cluster(Path(directory), storm.size) as cluster:
            # Of its own: how often it tries again depends on the moment, the requests do not.
            own = random.Random(f"client {storm.seed}")
            client = Client(cluster.ports, own, within=storm.size.request_timeout)
            try:
                await _storm(storm, report, cluster, client, (asks, draw))
            finally:
                report.keep_logs(Path(directory))


async def _storm(
    storm: Storm,
    report: Report,
    cluster: Cluster,
    client: Client,
    drawn: tuple[list[Ask], random.Random],
) -> None:
    asks, draw = drawn
    await undisturbed(cluster, client, asks)
    rest = await final.begin(report, cluster, client)
    kinds: Counter[str] = Counter()
    schedule = Schedule(cluster, storm.kinds, seed=storm.seed, pause=storm.pause)
    began = time.monotonic()
    hurting = asyncio.create_task(schedule.run(storm.faults))
    try:
        await crowd(client, storm.at_once, _work(storm, asks, draw, hurting, kinds))
        await hurting
    finally:
        hurting.cancel()
    report.row("requests / faults", f"{client.outcomes.total()} / {schedule.count.total()}")
    report.row("faults that found nothing to hurt (not counted)", str(schedule.missed))
    report.row("seconds of load", f"{time.monotonic() - began:.0f}")
    _coverage(storm, report, schedule)
    longest = max(client.waits, default=0.0)
    report.figure(
        "longest time for which a request was tried again",
        f"{longest:.0f} s",
        f"{_TRIED_FOR:.0f} s",
        within=longest <= _TRIED_FOR,
    )
    report.count("fault", schedule.count)
    report.count("client", kinds)
    report.count("request ended with", client.outcomes)
    report.violate(schedule.failed)
    await final.check(report, cluster, client, rest)


def _coverage(storm: Storm, report: Report, schedule: Schedule) -> None:
    """Each kind of fault must have taken effect, if there were so many that none is missed."""
    seen = sum(count > 0 for count in schedule.count.values())
    least = len(schedule.count) if storm.faults >= 2 * len(schedule.count) else 0
    report.figure(
        "kinds of faults that took effect",
        str(seen),
        f"{least}, as there are {storm.faults} faults of {len(schedule.count)} kinds",
        within=seen >= least,
    )
