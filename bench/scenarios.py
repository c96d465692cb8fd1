"""The scenarios, and one measurement: a load on a chain, and what the chain spent on it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import redis
from chains import MODEL, Chain
from processes import cpu_seconds, memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A load. `tick` is the engine's step in seconds, 0 for full speed."""

    title: str
    clients: int
    max_tokens: int
    tick: float = 0.0
    pause: float = 0.0  # clients wait at random up to this, or they fall into step with the tick
    seconds: float = 5.0  # in which requests begin; those under way are waited for


SCENARIOS = {
    "S1": Scenario(title="one client, 16 tokens, full speed", clients=1, max_tokens=16),
    "S2": Scenario(title="64 clients, 128 tokens, full speed", clients=64, max_tokens=128),
    "S3": Scenario(
        title="200 clients, 128 tokens, 20 ms tick",
        clients=200,
        max_tokens=128,
        tick=0.02,
        pause=0.02,
        seconds=30,
    ),
    "S4": Scenario(title="64 clients, 1 token, full speed", clients=64, max_tokens=1),
}


def run_load(url: str, scenario: Scenario, seconds: float) -> dict[str, Any]:
    """Run the load generator in a process of its own and return its report."""
    command = [
        *(sys.executable, "-m", "queueserve.cli", "bench", url, "--model", MODEL, "--json"),
        *("--concurrency", str(scenario.clients), "--max-tokens", str(scenario.max_tokens)),
        *("--duration", str(seconds), "--no-usage"),
        *(("--pause", str(scenario.pause)) if scenario.pause else ()),
    ]
    done = subprocess.run(command, capture_output=True, check=False, timeout=seconds + 600)
    if done.returncode:
        raise RuntimeError(done.stderr.decode()[-1000:])
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def measure(chain: Chain, scenario: Scenario, *, quick: float = 1.0) -> dict[str, Any]:
    """Warm up, run the load, and return the report with what the processes spent, in seconds."""
    run_load(chain.url, replace(scenario, clients=min(scenario.clients, 16), max_tokens=16), 1.5)
    before = {role: cpu_seconds(pid) for role, pid in chain.pids.items()}
    engine = chain.engine_seconds()
    counts = _redis_counts(chain)
    with _watched_memory(chain) as peak:
        report = run_load(chain.url, scenario, scenario.seconds * quick)
    after = {role: cpu_seconds(pid) for role, pid in chain.pids.items()}
    engine = chain.engine_seconds() - engine
    report["cpu"] = {role: after[role] - before[role] for role in before}
    report["engine_cpu"] = engine
    report["memory"] = dict(peak)
    if chain.redis_url:
        report["redis"] = {
            name: count - counts.get(name, 0) for name, count in _redis_counts(chain).items()
        }
    return report


@contextmanager
def _watched_memory(chain: Chain) -> Iterator[dict[str, int]]:
    peak = dict.fromkeys(chain.pids, 0)
    over = threading.Event()

    def watch() -> None:
        while not over.wait(2.0):
            for role, pid in chain.pids.items():
                peak[role] = max(peak[role], memory(pid))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def _redis_counts(chain: Chain) -> dict[str, int]:
    """How often each command ran, those inside functions too; `reads`: what came in at once."""
    if not chain.redis_url:
        return {}
    with redis.Redis.from_url(chain.redis_url) as client:
        stats = client.info("commandstats")
        counts = {name.removeprefix("cmdstat_"): row["calls"] for name, row in stats.items()}
        return counts | {"reads": client.info("stats")["total_reads_processed"]}
