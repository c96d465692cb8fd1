"""QueueServe in front of vLLM against vLLM itself, on a machine with GPUs; all in one command.

For each model: vLLM alone (AsyncLLM in a process), vLLM's own OpenAI server, QueueServe (embedded
Redis, API servers, a worker a GPU) and, for comparison, the transformers engine. The models have
random weights, as speed does not depend on their values: Vicuna-7B's shape, and SmolLM2's.

    python -m bench.gpu --tokenizer DIRECTORY [--models vicuna,smollm2] [--out results]

DIRECTORY holds SmolLM2's tokenizer and config.json. Prints a table; raw numbers go to `--out`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from bench.gpu_load import read_loads
from queueserve.queue.embedded import EmbeddedRedis

ROOT = Path(__file__).resolve().parent.parent
Load = tuple[int, int]  # streams, and requests of each
CUTS = ("p50", "p99")
SYSTEMS = ("alone", "server", "queueserve", "transformers")
VICUNA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "vocab_size": 32000,
}


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


def server(bench: Bench, model: Path) -> None:
    """Measure the OpenAI servers of vLLM itself, one a GPU."""
    gpus = max(1, bench.options.gpus)
    ports = free_ports(gpus)
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                bench.process(
                    f"{model.name}-server-{gpu}",
                    *("-m", "vllm.entrypoints.openai.api_server", "--model", str(model)),
                    *("--host", "127.0.0.1", "--port", str(port), "--served-model-name", "m"),
                    *("--disable-uvicorn-access-log", *bench.engine_arguments),
                    gpu=gpu,
                )
            )
            for gpu, port in enumerate(ports)
        ]
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        for url, process in zip(urls, processes, strict=True):
            wait_for(f"{url}/health", process, bench.options.patience)
        bench.measure(model.name, "server", urls[:1], 1)
        if gpus > 1:
            bench.measure(model.name, "server", urls, gpus)


def queueserve(bench: Bench, model: Path) -> None:
    """QueueServe: Redis, API servers, and a worker for each GPU."""
    gpus = max(1, bench.options.gpus)
    ports = free_ports(bench.options.api_servers * gpus)
    with ExitStack() as stack:
        redis = stack.enter_context(EmbeddedRedis(bench.scratch / "redis" / model.name, port=0))
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        for port in ports:
            stack.enter_context(
                bench.process(
                    f"{model.name}-api-{port}",
                    *("-m", "queueserve.cli", "serve", "--port", str(port)),
                    *("--redis-url", redis.url),
                )
            )

        def worker(gpu: int) -> subprocess.Popen[bytes]:
            return stack.enter_context(
                bench.process(
                    f"{model.name}-worker-{gpu}",
                    *("-m", "workers.cli", "--engine", "vllm", "--model-path", str(model)),
                    *("--model-names", "m", "--redis-url", redis.url),
                    *("--", *bench.engine_arguments),
                    gpu=gpu,
                )
            )

        first = worker(0)
        for url in urls:
            wait_for(f"{url}/ready", first, bench.options.patience)
        bench.measure(model.name, "queueserve", urls[: bench.options.api_servers], 1)
        if gpus > 1:
            others = [worker(gpu) for gpu in range(1, gpus)]
            _until_workers(redis.url, gpus, others, bench.options.patience)
            bench.measure(model.name, "queueserve", urls, gpus)


def _until_workers(
    url: str, count: int, processes: list[subprocess.Popen[bytes]], seconds: float
) -> None:
    import redis  # noqa: PLC0415

    until = time.monotonic() + seconds
    with redis.Redis.from_url(url) as client:
        while client.zcard("qs:{m}:alive") < count:
            if time.monotonic() > until or any(one.poll() is not None for one in processes):
                raise RuntimeError("not all workers have joined")
            time.sleep(0.2)


def transformers(bench: Bench, model: Path) -> None:
    """The transformers engine, in a process of its own; it wants real weights on the disk."""
    filled = bench.scratch / "filled" / model.name
    shutil.copytree(model, filled)
    script = (
        "import sys, torch\n"
        "from transformers import AutoConfig, AutoModelForCausalLM\n"
        "config = AutoConfig.from_pretrained(sys.argv[1])\n"
        "torch.set_default_device('cuda' if torch.cuda.is_available() else 'cpu')\n"
        "model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)\n"
        "model.save_pretrained(sys.argv[1])\n"
    )
    library = bench.options.transformers_path
    fill = ("-c", script, str(filled))
    with bench.process(f"{model.name}-fill", *fill, library=library) as process:
        if process.wait(bench.options.patience):
            raise RuntimeError("the random weights could not be written")
    loads = [load for load in bench.options.loads if load[0] <= 64]  # noqa: PLR2004
    adapter = ("--adapter", "transformers")
    bench.in_process(filled, "transformers", loads, *adapter, library=library)
    shutil.rmtree(filled)


def alone(bench: Bench, model: Path) -> None:
    """AsyncLLM in a process of its own."""
    bench.in_process(model, "alone", bench.options.loads, "--", *bench.engine_arguments)


def write_models(tokenizer: Path, into: Path) -> dict[str, Path]:
    """Directories with a configuration and a tokenizer, and without weights."""
    configs = {"vicuna": VICUNA, "smollm2": json.loads((tokenizer / "config.json").read_text())}
    for name, config in configs.items():
        (into / name).mkdir(parents=True)
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            if (tokenizer / file).is_file():
                shutil.copy(tokenizer / file, into / name)
        (into / name / "config.json").write_text(json.dumps(config))
    return {name: into / name for name in configs}


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


def machine() -> str:
    """What it ran on."""
    found = [f"{os.cpu_count()} cores", f"Python {platform.python_version()}"]
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        found += subprocess.run(
            query, capture_output=True, text=True, check=False
        ).stdout.splitlines()
    return "; ".join(found)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="QueueServe and vLLM on GPUs.")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--models", default="vicuna")
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument("--gpus", type=int, default=1, help="0: a CPU")
    parser.add_argument("--api-servers", type=int, default=2, help="processes a GPU")
    parser.add_argument(
        "--loads",
        type=read_loads,
        default="1x15,64x1,64x3,256x1,256x3",
        help="STREAMSxREQUESTS,…: all streams begin at once and send theirs one after the other",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--transformers-path", default="", help="a newer one for its engine")
    parser.add_argument("--engine-arguments", default="", help="more of vLLM's, for all of them")
    parser.add_argument("--patience", type=float, default=240, help="seconds for any one step")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"))
    return parser.parse_args()


def main() -> None:
    """Measure everything; what fails is said, and the rest goes on."""
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to stop"))
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(options, Path(scratch))
        bench.say(machine())
        models = write_models(options.tokenizer, Path(scratch) / "models")
        failures: list[str] = []
        try:
            for model in options.models.split(","):
                for system in options.systems.split(","):
                    _try(system, bench, models[model], failures)
                    _save(bench, failures)
        finally:
            print(table(bench.results))
            print("\n".join(f"FAILED {failure}" for failure in failures))
    sys.exit(bool(failures))


def _try(system: str, bench: Bench, model: Path, failures: list[str]) -> None:
    try:
        globals()[system](bench, model)
    except Exception as error:  # noqa: BLE001  # one system must not end the others
        failures.append(f"{model.name} {system}: {type(error).__name__}: {error}")
        bench.say(failures[-1])


def _save(bench: Bench, failures: list[str]) -> None:
    """Write the raw numbers and the ends of all logs so far."""
    raw = {"machine": machine(), "options": vars(bench.options), "failures": failures}
    (bench.options.out / "gpu.json").write_text(
        json.dumps(raw | {"results": bench.results}, default=str)
    )
    with (bench.options.out / "logs.txt").open("w") as file:
        for log in sorted(bench.scratch.glob("*.log")):
            end = log.read_text(errors="replace").splitlines()[-150:]
            file.write("\n".join([f"== {log.name}", *(line[:2000] for line in end), ""]))


if __name__ == "__main__":
    main()
