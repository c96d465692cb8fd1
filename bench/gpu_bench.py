"""What the systems of `gpu.py` are measured with: their processes, the loads, and the results."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
Load = tuple[int, int]  # streams, and requests of each
CUTS = ("p50", "p99")


class Bench:
    """The processes of one run, their log, and what was measured."""

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        self.options = options
        self.scratch = scratch
        self.results: list[dict[str, Any]] = []
        self._began = time.monotonic()

    def say(self, text: str) -> None:
        """Print with the seconds since the start."""
        print(f"{time.monotonic() - self._began:6.0f} s  {text}", flush=True)

    @property
    def engine_arguments(self) -> list[str]:
        """What every vLLM gets, so that all run the same batches and none keeps statistics."""
        most = max(streams for streams, _ in self.options.loads)
        return [
            *("--load-format", "dummy", "--max-num-seqs", str(most), "--disable-log-stats"),
            *("--max-num-batched-tokens", "8192", *self.options.engine_arguments.split()),
        ]

    @contextmanager
    def process(
        self, name: str, *command: str, gpu: int = 0, library: str = ""
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Run a process to the end of the block; it may use one GPU, and libraries of its own."""
        env = dict(os.environ)
        if self.options.gpus > 0:
            seen = env.get("CUDA_VISIBLE_DEVICES")  # another run may have the other GPUs
            env["CUDA_VISIBLE_DEVICES"] = seen.split(",")[gpu] if seen else str(gpu)
        places = [library, str(ROOT), env.get("PYTHONPATH", "")]
        env["PYTHONPATH"] = os.pathsep.join(filter(None, places))
        with (self.scratch / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env=env,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with suppress(ProcessLookupError):  # what it has started and left behind
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def note(self, model: str, system: str, gpus: int, found: Mapping[str, Any]) -> None:
        """Keep what a load generator printed, and say the main figure."""
        for one in found["rounds"]:  # hundreds of thousands of gaps would fill megabytes
            gaps = sorted(one.pop("gaps_ms")) or [0.0]
            one["gap_ms"] = {"p50": _at(gaps, 0.5), "p99": _at(gaps, 0.99)}
        rate = statistics.median(one["rate"] for one in found["rounds"])
        self.results.append({"model": model, "system": system, "gpus": gpus, **found})
        size = f"{found['streams']} streams of {found['requests']}"
        self.say(f"{model} {system} {gpus} GPU, {size}: {rate:.0f} tokens/s")

    def in_process(
        self, model: Path, system: str, loads: list[Load], *arguments: str, library: str = ""
    ) -> None:
        """Measure an engine in a process of its own, without Redis and HTTP."""
        log = self.scratch / f"{model.name}-{system}.log"
        command = [
            *("-m", "bench.gpu_alone", "--model", str(model)),
            *("--loads", ",".join(f"{streams}x{requests}" for streams, requests in loads)),
            *("--rounds", str(self.options.rounds)),
            *("--prompt", str(self.options.prompt), "--tokens", str(self.options.tokens)),
            *arguments,
        ]
        with self.process(log.stem, *command, library=library) as process:
            process.wait(self.options.patience)
            lines = log.read_text(errors="replace").splitlines()
        found = [json.loads(line) for line in lines if line.startswith('{"streams"')]
        for one in found:
            self.note(model.name, system, 1, one)
        if len(found) < len(loads):
            raise RuntimeError(f"{system} ended early (status {process.returncode})")

    def load(
        self, model: str, urls: list[str], streams: int, requests: int, loaders: int
    ) -> dict[str, Any]:
        """Measure servers, from `loaders` processes at once."""
        shares = [streams // loaders + (at < streams % loaders) for at in range(loaders)]
        command = [
            *(sys.executable, "-m", "bench.gpu_load", "--model", model),
            *("--prompt", str(self.options.prompt), "--tokens", str(self.options.tokens)),
            *("--requests", str(requests)),
        ]
        running = []
        for at, share in enumerate(filter(None, shares)):
            mine = urls[at::loaders] or urls
            running.append(
                subprocess.Popen(
                    [*command, "--seed", str(at + 10), "--streams", str(share), "--urls", *mine],
                    cwd=ROOT,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
        rounds = [_round(running) for _ in range(1 + self.options.rounds)][1:]  # after a warm-up
        for process in running:
            process.communicate(timeout=self.options.patience)
        return {"streams": streams, "requests": requests, "rounds": rounds}

    def measure(self, model: str, system: str, urls: list[str], gpus: int) -> None:
        """Measure servers with every load."""
        for streams, requests in self.options.loads:
            found = self.load("m", urls, streams * gpus, requests, gpus)
            self.note(model, system, gpus, found)


def _round(loaders: list[subprocess.Popen[bytes]]) -> dict[str, Any]:
    """One round of load generators that begin together: all their tokens, from first to last."""
    for process in loaders:
        assert process.stdin  # noqa: S101
        process.stdin.write(b"\n")
        process.stdin.flush()
    lines = [process.stdout.readline() for process in loaders if process.stdout]
    if not all(lines):
        raise RuntimeError("a load generator failed")
    parts = [json.loads(line) for line in lines]
    seconds = max(one["ended"] for one in parts) - min(one["began"] for one in parts)
    tokens = sum(one["tokens"] for one in parts)
    return {
        "tokens": tokens,
        "rate": tokens / seconds,
        "seconds": seconds,
        "first_ms": [ms for one in parts for ms in one["first_ms"]],
        "gaps_ms": [ms for one in parts for ms in one["gaps_ms"]],
    }


def table(results: list[dict[str, Any]]) -> str:
    """The medians of all rounds, one line a measurement."""
    lines = [
        "model    system       GPUs streams   x tokens/s  first token p50    p99  gap p50    p99 ms"
    ]
    for one in results:
        rounds = one["rounds"]
        first = sorted(ms for each in rounds for ms in each["first_ms"])
        gap = {cut: statistics.median(each["gap_ms"][cut] for each in rounds) for cut in CUTS}
        rate = statistics.median(each["rate"] for each in rounds)
        lines.append(
            f"{one['model']:8} {one['system']:12} {one['gpus']:4} {one['streams']:7}"
            f" {one['requests']:3} {rate:8.0f}"
            f"  {_at(first, 0.5):15.1f} {_at(first, 0.99):6.1f}"
            f"  {gap['p50']:7.2f} {gap['p99']:6.2f}"
        )
    return "\n".join(lines)


def _at(values: list[float], part: float) -> float:
    return values[min(len(values) - 1, int(part * len(values)))]


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        return [each.getsockname()[1] for each in sockets]


def wait_for(url: str, process: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait until `url` answers with 200. Raises RuntimeError if the process ends before."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"a server ended with status {process.returncode}")
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310  # our own
                if answer.status == 200:  # noqa: PLR2004
                    return
        except (OSError, urllib.error.URLError):
            time.sleep(0.2)
    raise RuntimeError(f"{url} did not answer within {seconds:.0f} s")
