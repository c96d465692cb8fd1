"""A QueueServe worker with the bench's engine; `own_seconds` goes to a file when it is asked.

python bench/fake_worker.py --redis-url URL --tick SECONDS --slots N --own FILE
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from pathlib import Path

import uvloop
from engine import BenchEngine

from queueserve import garbage
from workers.settings import WorkerSettings
from workers.worker import Worker


async def main(options: argparse.Namespace) -> None:
    """Serve the model `bench` until SIGTERM; SIGUSR1 writes the engine's own CPU seconds."""
    engine = BenchEngine(slots=options.slots, tick=options.tick)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(
        signal.SIGUSR1, lambda: options.own.write_text(f"{engine.own_seconds:.6f}")
    )
    settings = WorkerSettings(redis_url=options.redis_url, model_names=("bench",), grace=1.0)
    garbage.settle()  # as the worker's command does
    await Worker(engine, settings).run(stop)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--redis-url", required=True)
    parser.add_argument("--tick", type=float, default=0.0)
    parser.add_argument("--slots", type=int, default=256)
    parser.add_argument("--own", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    uvloop.run(main(parse()))
