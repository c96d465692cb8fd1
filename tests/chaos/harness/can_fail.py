"""Four known bugs, one after the other: the checks must find each."""

from __future__ import annotations

import asyncio
import random
import re
import signal
import tempfile
import time
from pathlib import Path

from harness import checks
from harness.catalogue import ask
from harness.clients import Client, Manner, crowd
from harness.cluster import ROOT, Cluster, Size
from harness.faults import Fault, Schedule
from harness.report import Report
from harness.rest import Rest

FOUND_WITHIN = 90.0  # seconds, on a slow machine
_LOOK = 0.5


async def _late(cluster: Cluster, draw: random.Random) -> None:
    """A finish leaves its worker in time, and arrives when the job is somebody else's."""
    await draw.choice(cluster.workers).link.hold(cluster.size.heartbeat * 1.4)


async def _slow(cluster: Cluster, draw: random.Random) -> None:
    """Answers to heartbeats are out of date when they arrive."""
    await draw.choice(cluster.workers).link.delay(0.4, 3.0)


async def _unheard(cluster: Cluster, draw: random.Random) -> None:
    """A hint leaves Redis, and its connection is reset before it arrives."""
    await draw.choice(cluster.workers).link.drop_answers(0.5)


async def _killed(cluster: Cluster, draw: random.Random) -> bool:
    """A worker that has jobs dies, and another one is there to get them."""
    there = cluster.registered()
    busy = [
        node
        for node in cluster.workers
        if node.pid in there and cluster.client.hlen(f"{ROOT}:lease:{there[node.pid]}")
    ]
    return len(there) > 1 and bool(busy) and draw.choice(busy).signal(signal.SIGKILL)


PROVOKED_BY = {
    "finish_without_its_epoch_check": _late,
    "pop_is_the_only_record": _unheard,
    "finished_epochs_run_again": _slow,
    "reaper_requeues_by_itself": _killed,
}
SEEN_AS = {  # each bug's own violation: another one is no find
    "finish_without_its_epoch_check": re.compile(r"ended it under epoch|two accepted finishes"),
    "pop_is_the_only_record": re.compile(r"was not run within its time"),
    "finished_epochs_run_again": re.compile(r"ran \d+ times"),
    "reaper_requeues_by_itself": re.compile(r"its reader did not resume"),
}

LEAKS = (  # as the checks say it
    r"api0 has more [^;]*'tasks': \{'Event.wait'",
    r"api0 has more [^;]*'files': \{'socket'",
    r"api0 has more [^;]*connections not given back",
    r"worker0 has more [^;]*'tasks': \{'Event.wait'",
    r"worker0 has more [^;]*'files': \{'socket'",
    r"more keys",
    r"data of Redis grew",
)


async def found(bug: str, *, seed: int, fault_pause: float = 0.6) -> list[str]:
    """The violations that are this bug's own; empty if the checks do not find it."""
    size = Size(apis=1, workers=3, slots=4, bug=bug, seed=seed, request_timeout=6.0)
    with tempfile.TemporaryDirectory(prefix="chaos-") as directory:
        async with Cluster(Path(directory), size) as cluster:
            client = Client(cluster.ports, random.Random(seed))
            faults = [Fault(bug, 1, PROVOKED_BY[bug])]
            schedule = Schedule(cluster, faults, seed=seed, pause=fault_pause)
            hurting = asyncio.create_task(schedule.run(10_000))
            load = [asyncio.create_task(_endless(client)) for _ in range(10)]
            try:
                return await _looking(cluster, SEEN_AS[bug])
            finally:
                for task in (hurting, *load):
                    task.cancel()
                await asyncio.wait([hurting, *load])


async def _endless(client: Client) -> None:
    while True:
        tokens = client.draw.randint(2, 25)
        await client.request(ask("a short one", temperature=0, max_tokens=tokens), Manner())


async def _looking(cluster: Cluster, own: re.Pattern[str]) -> list[str]:
    end = time.monotonic() + FOUND_WITHIN
    while time.monotonic() < end:
        await asyncio.sleep(_LOOK)
        violations = checks.audited(cluster, ended=False).violations
        if found := [each for each in violations if own.search(each)]:
            return found
    return []


async def leaks_found(*, seed: int, requests: int = 8) -> str:
    """What is found of all that can be left behind."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as directory:
        async with Cluster(Path(directory), Size(apis=1, workers=1, bug="leaks")) as cluster:
            client = Client(cluster.ports, random.Random(seed))
            work = [(ask("a short one", temperature=0, max_tokens=5), Manner())] * requests
            await crowd(client, 2, work)
            await checks.settled(cluster)
            rest = Rest(cluster, within=2.0)
            await rest.remember()
            await crowd(client, 2, work)
            await checks.settled(cluster)
            return "; ".join(await rest.compare())


def not_found(left: str) -> list[str]:
    """Those of `LEAKS` that are not in what the checks found."""
    return [leak for leak in LEAKS if not re.search(leak, left)]


async def run(report: Report, *, seed: int) -> None:
    """All four, and the leaks; one that is not found is a violation."""
    for bug in PROVOKED_BY:
        began = time.monotonic()
        violations = await found(bug, seed=seed)
        took = time.monotonic() - began
        report.row(bug, f"found after {took:.0f} s: {violations[0]}" if violations else "NOT FOUND")
        if not violations:
            report.violate([f"the bug {bug} was not found"])
    left = await leaks_found(seed=seed)
    report.row("leaks", left)
    report.violate(f"the leak ({leak}) was not found" for leak in not_found(left))
