"""Load, and faults at random moments; then everything is checked."""

from __future__ import annotations

import asyncio
import itertools
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness import checks
from harness.catalogue import Ask, ask, catalogue
from harness.clients import Client, Manner, crowd
from harness.cluster import ROOT, Cluster, Size
from harness.faults import FAULTS, Fault, Schedule
from harness.report import Report

_HURTFUL = (  # prompts that disturb engines, and whether they break them
    ("[[crash {}]] a poison job", True),
    ("[[oom {}]] a job that does not fit", True),
    ("[[stall {}]] a job at which the engine pauses", False),
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
    storm: Storm, asks: list[Ask], draw: random.Random, hurting: asyncio.Task[None]
) -> Iterator[tuple[Ask, Manner]]:
    """Requests without an end, until there were enough of them and of faults."""
    for number in itertools.count():
        if number >= storm.requests and hurting.done():
            return
        if draw.random() < storm.hurtful:
            prompt, breaks = draw.choice(_HURTFUL)
            hurtful = ask(prompt.format(draw.randint(1, 20)), temperature=0)
            yield replace(hurtful, breaks=breaks), Manner()
        else:
            yield draw.choice(asks), _manner(draw)


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
            client = Client(cluster.ports, random.Random(f"client {storm.seed}"))
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
    processes = checks.Processes(cluster)
    await undisturbed(cluster, client, asks)
    report.violate(await checks.settled(cluster))
    await processes.remember()
    client.attempts.clear()
    client.outcomes.clear()
    schedule = Schedule(cluster, storm.kinds, seed=storm.seed, pause=storm.pause)
    began = time.monotonic()
    hurting = asyncio.create_task(schedule.run(storm.faults))
    try:
        await crowd(client, storm.at_once, _work(storm, asks, draw, hurting))
        await hurting
    finally:
        hurting.cancel()
    report.row("requests / faults", f"{client.outcomes.total()} / {schedule.count.total()}")
    report.row("faults that found nothing to hurt (not counted)", str(schedule.missed))
    report.row("seconds of load", f"{time.monotonic() - began:.0f}")
    report.violate(await checks.settled(cluster))
    report.count("fault", schedule.count)
    report.count("request ended with", client.outcomes)
    report.violate(schedule.failed)
    await check(report, cluster, client, processes)


async def check(
    report: Report, cluster: Cluster, client: Client, processes: checks.Processes
) -> None:
    """Everything that must be true in the end."""
    audit = checks.audited(cluster)
    jobs = f"{audit.submitted} / {audit.dispatched} / {audit.orphaned}"
    report.row("jobs submitted / dispatched / orphaned", jobs)
    report.row("finishes refused (from zombies, or said twice)", str(audit.stale))
    report.row("dead letters", str(cluster.client.zcard(f"{ROOT}:dead")))
    report.count("job ended", audit.ends)
    report.violate(client.violations)
    report.violate(audit.violations)
    report.violate(checks.explained(cluster, [client]))
    report.violate(checks.redis_is_clean(cluster))
    report.violate(await processes.doors_are_closed())
    report.violate(await processes.compare())
    report.violate(found for node in cluster.nodes for found in node.unexpected)
    memory = f"{processes.most_mb:.0f} MB / {processes.growth_mb:.0f} MB"
    report.row("memory of a process: most / growth", memory)
