"""Where one process of QueueServe's chain spends its time in a scenario: py-spy's flat table.

python bench/profiling.py --scenario S3 --role api [--native]
"""

from __future__ import annotations

import argparse
import collections
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from chains import CHAINS, Launcher
from scenarios import SCENARIOS, run_load


def main(options: argparse.Namespace) -> None:
    """Sample while the load runs, and print the share of each function, own and with callees."""
    plan = SCENARIOS[options.scenario]
    with tempfile.TemporaryDirectory() as scratch, Launcher(Path(scratch)) as launch:
        chain = CHAINS["queueserve"](launch, plan.tick, max(256, plan.clients))
        load = threading.Thread(target=run_load, args=(chain.url, plan, options.seconds + 3))
        load.start()
        raw = Path(scratch) / "raw"
        subprocess.run(
            [
                *(str(Path(sys.executable).parent / "py-spy"), "record", "--format", "raw"),
                *("--rate", "400", "--duration", str(options.seconds), "--output", str(raw)),
                *("--pid", str(chain.pids[options.role]), *(["--native"] * options.native)),
            ],
            check=True,
            capture_output=True,
        )
        load.join()
        _print(raw.read_text().splitlines(), options.rows)


def _print(lines: list[str], rows: int) -> None:
    own: collections.Counter[str] = collections.Counter()
    total: collections.Counter[str] = collections.Counter()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        frames = [frame.rpartition(":")[0] or frame for frame in stack.split(";")]
        own[frames[-1]] += int(count)
        for frame in set(frames):
            total[frame] += int(count)
    everything = sum(own.values())
    for title, table in (("own", own), ("with what it calls", total)):
        print(f"\n{title}")
        for frame, count in table.most_common(rows):
            print(f"{100 * count / everything:6.1f} %  {frame}")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", default="S3", choices=SCENARIOS)
    parser.add_argument("--role", default="api", choices=["api", "worker"])
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--rows", type=int, default=25)
    parser.add_argument("--native", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main(parse())
