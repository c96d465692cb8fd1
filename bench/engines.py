"""Tokens per second of an engine at several numbers of streams, without Redis and HTTP.

The streams of a round start together, each with a prompt of its own; the rate is taken while all of
them run. Rounds of all sizes take turns, so that what else runs on the machine bears on them alike.

    python bench/engines.py --engine transformers [--model-path PATH] [--streams 1,8] [--rounds 3]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from pathlib import Path

from queueserve.protocol import Sampling
from workers.adapters import ADAPTERS, EngineOptions, make_engine
from workers.engines.base import Engine, Output, Sequence
from workers.models import resolve

PROMPT = "Once upon a time, in a village by the sea, there lived a clockmaker named"
NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hal", "Ida", "Jon", "Kay", "Leo")


class Bench:
    """A started engine, and the times at which its tokens came."""

    def __init__(self, engine: Engine, tokens: int) -> None:
        self.engine = engine
        self._sampling = Sampling(temperature=0.0, max_tokens=tokens, ignore_eos=True)
        self._times: dict[str, list[float]] = {}
        self._running = 0
        self._over = asyncio.Event()

    def sink(self, outputs: list[Output]) -> None:
        """Note when the tokens of one step came."""
        now = time.perf_counter()
        for output in outputs:
            self._times[output.id] += [now] * len(output.tokens)
            self._running -= output.finish is not None or output.error is not None
        if self._running == 0:
            self._over.set()

    async def round(self, streams: int) -> tuple[float, float]:
        """Tokens per second while all streams run, and seconds to the first token of the last."""
        prompts = [
            await self.engine.tokenizer.encode(
                f"{PROMPT} {NAMES[number % len(NAMES)]} {number}", add_special=True
            )
            for number in range(streams)
        ]
        self._times = {str(number): [] for number in range(streams)}
        self._running = streams
        self._over.clear()
        began = time.perf_counter()
        for name, prompt in zip(self._times, prompts, strict=True):
            self.engine.add(Sequence(id=name, prompt=prompt, sampling=self._sampling))
        await self._over.wait()
        start = max(times[0] for times in self._times.values())
        end = min(times[-1] for times in self._times.values())
        counted = sum(start < at <= end for times in self._times.values() for at in times)
        return counted / (end - start), start - began


async def main(options: argparse.Namespace) -> None:
    """Start the engine, run the rounds, print a table."""
    sizes = [int(size) for size in options.streams.split(",")]
    engine = make_engine(
        resolve(options.model_path, options.engine),
        EngineOptions(
            slots=max(sizes),
            context_length=options.context_length,
            dtype=options.dtype,
            data_dir=options.data_dir,
            tick=0.0,
        ),
    )
    bench = Bench(engine, options.tokens)
    began = time.perf_counter()
    await engine.start(bench.sink)
    print(f"{engine.info.engine} {engine.info.version}: up in {time.perf_counter() - began:.1f} s")
    await bench.round(max(sizes))  # warm up
    rates: dict[int, list[float]] = {size: [] for size in sizes}
    firsts: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(options.rounds):
        for size in sizes:
            rate, first = await bench.round(size)
            rates[size].append(rate)
            firsts[size].append(first)
    await engine.close()
    print("streams   tokens/s (lowest to highest)   times one   first token")
    alone = statistics.median(rates[sizes[0]])
    for size in sizes:
        rate = statistics.median(rates[size])
        spread = f"({min(rates[size]):.1f} to {max(rates[size]):.1f})"
        print(
            f"{size:7}   {rate:8.1f} {spread:>21}   {rate / alone:9.2f}"
            f"   {statistics.median(firsts[size]) * 1000:8.0f} ms"
        )


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Tokens per second of an engine.")
    parser.add_argument("--engine", choices=["auto", *ADAPTERS], default="auto")
    parser.add_argument("--model-path", help="a file, a directory, a hub id; default: smollm2")
    parser.add_argument("--streams", default="1,8", help="the numbers of streams to try")
    parser.add_argument("--tokens", type=int, default=48, help="output tokens a stream")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--context-length", type=int, default=1024)
    parser.add_argument("--data-dir", type=Path, default=Path(".queueserve"))
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main(parse()))
