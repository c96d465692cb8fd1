"""`make bench`: chains and scenarios, the queue, memory; results to a file, tables to stdout.

python bench/run.py [--scenarios S1,S3] [--chains bare,queueserve] [--rounds 1] [--quick 0.5]
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import page
import psutil
from capacity import open_streams, scale_out, steady
from chains import CHAINS, Launcher, MissingError
from queue_cost import idle, run_depths, run_pools
from redis.exceptions import RedisError
from scenarios import SCENARIOS, measure

RESULTS = Path(__file__).parent / "results"
_FAILURES = (RuntimeError, TimeoutError, OSError, RedisError, subprocess.SubprocessError)
OTHERS = "depths,pools,idle,scale_out,open_streams,steady"


def _say(name: str, scenario: str, report: dict[str, Any]) -> None:
    tokens, requests = max(1, report["tokens"]), max(1, report["requests"])
    spent = sum(report["cpu"].values()) - report["engine_cpu"]
    parts = " ".join(f"{role} {s * 1e6 / tokens:.1f}" for role, s in report["cpu"].items())
    print(
        f"{scenario} {name:12} {report['tokens_per_s']:9.0f} tokens/s"
        f" {report['requests_per_s']:7.0f} req/s"
        f" ttft {report['ttft_ms']['p50']:7.2f}/{report['ttft_ms']['p99']:7.2f}"
        f" whole {report['whole_ms']['p50']:7.2f} gap99 {report['gap_ms']['p99']:6.1f}"
        f" CPU {spent * 1e6 / tokens:6.1f} us/token ({parts}; engine"
        f" {report['engine_cpu'] * 1e6 / tokens:.1f}; load {report['cpu_s'] * 1e6 / tokens:.1f})"
        f" {spent * 1e6 / requests:6.0f} us/req failed {report['failed']}",
        flush=True,
    )


def _save(options: argparse.Namespace, results: dict[str, Any]) -> None:
    """Write what there is: a run may be stopped."""
    results["seconds"] = round(time.time() - results["began"])
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(json.dumps(results, indent=1) + "\n")


def run_scenarios(options: argparse.Namespace, results: dict[str, Any]) -> None:
    """Run each chain with the scenarios of one pace, one chain after the other, in rounds."""
    asked = [name for name in options.scenarios.split(",") if name]
    for tick in sorted({SCENARIOS[name].tick for name in asked}):
        names = [name for name in asked if SCENARIOS[name].tick == tick]
        for _ in range(options.rounds):
            for chain in options.chains.split(","):
                if f"{chain}, {' '.join(names)}" not in results["left_out"]:
                    run_chain(chain, names, options, results)


def run_chain(
    name: str, scenarios: list[str], options: argparse.Namespace, results: dict[str, Any]
) -> None:
    """Start a chain, measure scenarios of one pace, end the chain."""
    plans = [SCENARIOS[scenario] for scenario in scenarios]
    slots = max(256, *(plan.clients for plan in plans))
    try:
        with tempfile.TemporaryDirectory() as scratch, Launcher(Path(scratch)) as launch:
            chain = CHAINS[name](launch, plans[0].tick, slots)
            for scenario, plan in zip(scenarios, plans, strict=True):
                report = measure(chain, plan, quick=options.quick)
                results["scenarios"].setdefault(scenario, {}).setdefault(name, []).append(report)
                _say(name, scenario, report)
                _save(options, results)
    except (MissingError, *_FAILURES) as error:
        results["left_out"][f"{name}, {' '.join(scenarios)}"] = str(error)
        print(f"{name:12} left out: {error}", flush=True)


def run_others(options: argparse.Namespace, results: dict[str, Any]) -> None:
    """Run what is asked of the queue, and of more and of larger."""
    quick = options.quick
    runs: dict[str, Callable[[Launcher], Any]] = {
        "depths": lambda launch: run_depths(launch, [10, 10_000, int(1_000_000 * quick)]),
        "pools": lambda launch: run_pools(launch, [10, 100, 1000]),
        "idle": lambda launch: idle(launch, 8 * quick),
        "scale_out": lambda launch: scale_out(launch, 5 * quick),
        "open_streams": lambda launch: open_streams(launch, int(10_000 * quick)),
        "steady": lambda launch: steady(launch, int(100_000 * quick)),
    }
    for name in filter(None, options.others.split(",")):
        try:
            with tempfile.TemporaryDirectory() as scratch, Launcher(Path(scratch)) as launch:
                results[name] = runs[name](launch)
        except (
            RuntimeError,
            TimeoutError,
            OSError,
            RedisError,
            subprocess.SubprocessError,
        ) as error:
            results["left_out"][name] = str(error)
        print(name, results.get(name, results["left_out"].get(name)), flush=True)
        _save(options, results)


def main(options: argparse.Namespace) -> None:
    """Run, write the results, print the tables."""
    results: dict[str, Any] = {
        "began": time.time(),
        "date": time.strftime("%Y-%m-%d %H:%M"),
        # Which build it is counts: without profile-guided optimization it is a tenth slower.
        "machine": f"{psutil.cpu_count()} x {platform.machine()}, Python {sys.version}",
        "quick": options.quick,
        "rounds": options.rounds,
        "scenarios": {},
        "left_out": {},
    }
    run_scenarios(options, results)
    run_others(options, results)
    _save(options, results)
    print("\n" + page.tables(results) + "\n" + page.bars_table([results]))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenarios", default=",".join(SCENARIOS))
    parser.add_argument("--chains", default=",".join(CHAINS))
    parser.add_argument("--others", default=OTHERS, help=f"of {OTHERS}")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--quick", type=float, default=1.0, help="a factor on all sizes and times")
    now = time.strftime("%Y%m%d-%H%M%S")
    parser.add_argument("--output", type=Path, default=RESULTS / f"{now}.json")
    return parser.parse_args()


if __name__ == "__main__":
    main(parse())
