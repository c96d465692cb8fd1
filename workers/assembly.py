"""The options of `queueserve-worker` as workers: a model, its engine and its settings for each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from queueserve.errors import InvalidRequestError
from workers.adapters import EngineOptions, make_engine
from workers.engines.weights import Bits
from workers.models import resolve
from workers.settings import WorkerSettings
from workers.worker import Worker

_DTYPES = ("auto", "float32", "bfloat16", "float16")


def make_workers(
    *,
    model_path: Sequence[str],
    model_names: Sequence[str],
    chat_template: str | None,
    engine: str,
    redis_url: str,
    **settings: Any,
) -> list[Worker]:
    """Return a worker for each model, none of them started; `settings` are the other options.

    Raises EngineError and InvalidRequestError for what cannot work.
    """
    paths: Sequence[str | None] = model_path or (None,)
    if model_names and len(model_names) != len(paths):
        raise InvalidRequestError("--model-names must be given once for every --model-path")
    names: Sequence[str] = model_names or ("",) * len(paths)
    return [
        _worker(path, called, chat_template, engine, redis_url, **settings)
        for path, called in zip(paths, names, strict=True)
    ]


def _worker(
    path: str | None,
    called: str,
    chat_template: str | None,
    engine: str,
    redis_url: str,
    *,
    limit_worker_concurrency: int | None,
    fake_tick: float,
    context_length: int | None,
    dtype: str,
    device: str | None,
    load_8bit: bool,
    load_4bit: bool,
    max_gpu_memory: str | None,
    cpu_offloading: bool,
    revision: str | None,
    threads: int | None,
    data_dir: Path | None,
    num_gpus: int | None,
    gpu_layers: int | None,
    lora_modules: Sequence[str],
    api_base: str | None,
    engine_arguments: tuple[str, ...],
    **settings: Any,
) -> Worker:
    if dtype not in _DTYPES:
        raise InvalidRequestError(f"--dtype {dtype}: it is one of {', '.join(_DTYPES)}")
    source = resolve(path, engine)
    wanted = EngineOptions(
        slots=limit_worker_concurrency,
        context_length=context_length,
        dtype=dtype,
        device=device,
        bits=_bits(load_8bit=load_8bit, load_4bit=load_4bit),
        max_gpu_memory=max_gpu_memory,
        cpu_offloading=cpu_offloading,
        revision=revision,
        threads=threads,
        data_dir=data_dir,
        num_gpus=num_gpus,
        gpu_layers=gpu_layers,
        adapters=tuple(map(_adapter, lora_modules)),
        arguments=engine_arguments,
        api_base=api_base,
        tick=fake_tick,
    )
    names = tuple(name.strip() for name in called.split(",") if name.strip()) or (source.name,)
    return Worker(
        make_engine(source, wanted),
        WorkerSettings(
            redis_url=redis_url,
            model_names=names,
            chat_template=chat_template,
            model_path=source.origin,
            defaults=source.sampling,
            **settings,
        ),
    )


def _adapter(module: str) -> tuple[str, Path]:
    name, is_given, directory = module.partition("=")
    if not (name and is_given and Path(directory).is_dir()):
        raise InvalidRequestError(f"--lora-modules wants NAME=DIRECTORY, not {module!r}")
    return name, Path(directory)


def _bits(*, load_8bit: bool, load_4bit: bool) -> Bits | None:
    if load_8bit and load_4bit:
        raise InvalidRequestError("--load-8bit and --load-4bit are two things: choose one")
    if load_8bit:
        return 8
    return 4 if load_4bit else None
