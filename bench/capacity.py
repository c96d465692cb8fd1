"""What more of it costs: two API servers, 10,000 open streams, 100,000 requests."""

from __future__ import annotations

import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import redis
from chains import MODEL, Chain, Launcher, queueserve
from processes import cpu_seconds, memory, wait_for
from scenarios import SCENARIOS, run_load

_FILES = 100  # that a process needs besides
_ARRIVE = 400  # streams that are opened in a second


def scale_out(launch: Launcher, seconds: float) -> dict[str, float]:
    """CPU per request in microseconds with S4's load on one API server, then on two, half on each.

    The load comes from two generators both times, and both servers are there.
    """
    chain = queueserve(launch, 0.0, 256, servers=2)
    one, two = (chain.url, chain.url), (chain.url, *chain.more_urls)
    _loaded(chain, two, 1.5)
    alone, both = _loaded(chain, one, seconds), _loaded(chain, two, seconds)
    return {"us_with_one": alone, "us_with_two": both}


def _loaded(chain: Chain, urls: tuple[str, ...], seconds: float) -> float:
    plan = SCENARIOS["S4"]
    half = replace(plan, clients=plan.clients // 2)
    before, engine = _spent(chain), chain.engine_seconds()
    with ThreadPoolExecutor() as pool:
        reports = list(pool.map(lambda url: run_load(url, half, seconds), urls))
    spent = _spent(chain) - before - (chain.engine_seconds() - engine)
    return spent * 1e6 / sum(report["requests"] for report in reports)


def _spent(chain: Chain) -> float:
    return sum(map(cpu_seconds, chain.pids.values()))


def open_streams(launch: Launcher, streams: int) -> dict[str, float]:
    """Memory of one API server (PSS) for each open stream, in kB."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # of the processes that we start
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < streams + _FILES:
        raise RuntimeError(f"a process may open {hard} files: too few for {streams} streams")
    chain = queueserve(launch, 5.0, streams + 10)
    run_load(chain.url, replace(SCENARIOS["S4"], clients=8), 1.0)  # what these load stays
    before = memory(chain.pids["api"])
    command = [
        *(sys.executable, "-m", "queueserve.cli", "bench", chain.url, "--model", MODEL, "--json"),
        *("--concurrency", str(streams), "--max-tokens", "100000", "--duration", "300"),
        *("--rate", str(_ARRIVE)),
    ]
    load = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0
    try:
        with redis.Redis.from_url(chain.redis_url, decode_responses=True) as client:

            def running() -> bool:
                nonlocal peak
                peak = max(peak, memory(chain.pids["api"]))
                workers = client.zrange(f"qs:{{{MODEL}}}:alive", 0, -1)
                held = sum(client.hlen(f"qs:{{{MODEL}}}:lease:{one}") for one in workers)
                return held >= streams

            wait_for(running, f"{streams} open streams", seconds=240)
            running()
    finally:
        load.kill()
        load.wait()
    return {"streams": streams, "kb_per_stream": (peak - before) / streams / 1000}


def steady(launch: Launcher, requests: int) -> dict[str, Any]:
    """Memory of the API server after a tenth of so many requests, and after all of them, in MB."""
    chain = queueserve(launch, 0.0, 256)
    sizes, done = [], 0
    for goal in (requests // 10, requests):
        while done < goal:
            done += run_load(chain.url, SCENARIOS["S4"], 10)["requests"]
        sizes.append(memory(chain.pids["api"]) / 1e6)
    return {"requests": done, "mb_after_a_tenth": sizes[0], "mb_after_all": sizes[1]}
