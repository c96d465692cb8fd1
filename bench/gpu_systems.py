"""The systems that `gpu.py` measures: what each starts, and what is asked of it."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from bench.gpu_bench import Bench, free_ports, wait_for
from queueserve.queue.embedded import EmbeddedRedis


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


SYSTEMS: dict[str, Callable[[Bench, Path], None]] = {
    "alone": alone,
    "server": server,
    "queueserve": queueserve,
    "transformers": transformers,
}
"""What each name of `--systems` stands for."""
