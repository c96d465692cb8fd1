"""Clients that read slowly, or never: what they cost the others, and when they are cut off."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import statistics
import tempfile
import time
from pathlib import Path

from harness import final
from harness.catalogue import Ask, ask
from harness.clients import Client, Manner
from harness.cluster import ROOT, Api, Cluster, Size, until
from harness.report import Report
from harness.wire import connected_socket, request_bytes

_NEVER = 8  # clients that never read
_SLOWLY = 3  # clients that read about half as fast as their answers come
_SIPS = 0.05  # seconds between two pieces that those take
_SIPPED = 300  # tokens
_OTHERS = 8
_WRITE_TIMEOUT = 4.0
_SIZE = Size(apis=1, workers=2, slots=12, tick=0.02, write_timeout=_WRITE_TIMEOUT)
_SECONDS = 5.0
_TOKENS = 4000
_ANSWER = _TOKENS * 0.02  # seconds that an answer takes
_FILLED = 10.0  # seconds in which an answer fills what lies between server and client
_SLOWER = 1.5  # times that others may be, beside clients that read slowly or never
_STEP_MS = 20.0  # that a pause may be longer, one in a hundred
_BACKLOG = 4096  # bytes that a client's socket takes in without being read


async def run(report: Report, *, seed: int) -> None:
    """Others alone, then beside clients that read slowly, and some that never read."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as directory:
        async with Cluster(Path(directory), _SIZE) as cluster:
            client = Client(cluster.ports, random.Random(seed))
            normal = ask("others", temperature=0, max_tokens=60)
            slow = ask("a slow one", temperature=0, max_tokens=_SIPPED)
            await asyncio.gather(client.request(normal), client.request(slow))
            alone = await _pauses(client, normal)
            rest = await final.begin(report, cluster, client)
            began = time.monotonic()
            sipping = Client(lambda: {"api0": cluster.apis[0].door.target}, random.Random(seed))
            slowly = [
                asyncio.create_task(sipping.request(slow, Manner(sips=_SIPS)))
                for _ in range(_SLOWLY)
            ]
            deaf = [_never_reads(cluster.apis[0]) for _ in range(_NEVER)]
            await until(lambda: _held(cluster) >= _NEVER + _SLOWLY, "their start")
            beside = await _pauses(client, normal)
            report.violate(await _cut_off(cluster))
            _cut_off_after(report, time.monotonic() - began)
            for each in deaf:
                each.close()
            await asyncio.wait(slowly)
            _read_slowly(report, sipping)
            await final.check(report, cluster, client, rest)
            _cost(report, alone, beside)


def _cut_off_after(report: Report, seconds: float) -> None:
    bound = _SECONDS + _FILLED + _WRITE_TIMEOUT
    report.figure(
        "clients that never read: cut off and their slots free after",
        f"{seconds:.0f} s",
        f"{bound:.0f} s",
        within=seconds <= bound,
    )


def _held(cluster: Cluster) -> int:
    workers = cluster.client.zrange(f"{ROOT}:alive", 0, -1)
    return sum(cluster.client.hlen(f"{ROOT}:lease:{worker}") for worker in workers)


def _cost(report: Report, alone: list[float], beside: list[float]) -> None:
    """What the others' pauses are, in ms: the median, and one in a hundred."""
    before, after = statistics.median(alone), statistics.median(beside)
    report.figure(
        "median pause of others alone / beside",
        f"{before:.1f} / {after:.1f} ms",
        f"{_SLOWER:.1f} times alone",
        within=after <= _SLOWER * before,
    )
    before, after = (statistics.quantiles(each, n=100)[98] for each in (alone, beside))
    report.figure(
        "p99 of the pauses of others alone / beside",
        f"{before:.1f} / {after:.1f} ms",
        f"{_SLOWER:.1f} times alone and {_STEP_MS:.0f} ms",
        within=after <= _SLOWER * before + _STEP_MS,
    )


def _read_slowly(report: Report, sipping: Client) -> None:
    """Who takes something is not cut off, and gets all of it, however late."""
    report.violate(sipping.violations)
    attempts = sipping.attempts
    late = [each.ended - each.began - _SIPPED * _SIZE.tick for each in attempts]
    report.row(
        f"{_SLOWLY} clients that read slowly: done after the last token by", f"{min(late):.0f} s"
    )
    report.violate(
        f"a client that reads slowly: its answer ended with {each.how}"
        for each in attempts
        if each.how != "done"
    )


async def _pauses(client: Client, normal: Ask) -> list[float]:
    """The times between two pieces, in ms."""
    first = len(client.attempts)
    end = time.monotonic() + _SECONDS

    async def one() -> None:
        while time.monotonic() < end:
            await client.request(normal, Manner())

    await asyncio.gather(*(one() for _ in range(_OTHERS)))
    attempts = client.attempts[first:]
    return [
        1000 * (b - a)
        for each in attempts
        for a, b in zip(each.pieces, each.pieces[1:], strict=False)
    ]


def _never_reads(api: Api) -> socket.socket:
    """A client with a small window that asks for a long answer, straight at the server."""
    client = connected_socket(api.door.target, _BACKLOG)
    long = ask("a long one", temperature=0, max_tokens=_TOKENS)
    client.sendall(request_bytes(long.path, json.dumps(long.payload).encode(), {}))
    return client


async def _cut_off(cluster: Cluster) -> list[str]:
    """Wait until no worker works for them; their answers take much longer than the bound."""
    try:
        await until(lambda: not _held(cluster), "their end", _ANSWER * 0.75)
    except TimeoutError:
        return ["clients that never read were not cut off"]
    return []
