"""What loading a model takes: a thread, the files that are the model, cores to compute on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TypeVar, cast

from queueserve.errors import EngineError
from workers.engines import machine

T = TypeVar("T")

_THREAD = "loading"
# In the order in which transformers looks for them.
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_SETTINGS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


def checkpoint_files(directory: Path) -> list[Path]:
    """The files of a model's directory that decide the tokens."""
    found = [directory / name for name in _SETTINGS if (directory / name).is_file()]
    for name in _WEIGHTS:
        if (path := directory / name).is_file():
            found.append(path)
            if name.endswith(".index.json"):
                shards = set(json.loads(path.read_bytes())["weight_map"].values())
                found += [directory / shard for shard in shards]
            break
    return found


async def in_daemon_thread(call: Callable[[], T]) -> T:
    """Like `asyncio.to_thread`, but a process that is told to end need not wait for the thread.

    Who gives up waiting leaves the thread alone, and what it returns is dropped.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: Exception | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(cast("T", value))
        else:
            done.set_exception(error)

    def run() -> None:
        value: T | None = None
        error: Exception | None = None
        try:
            value = call()
        except (StopIteration, SystemExit) as problem:
            # No future takes the first, and an event loop ends with the second.
            error = EngineError(f"loading ended with {problem!r}")
        except Exception as problem:  # noqa: BLE001  # it is raised again below
            error = problem
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=run, name=_THREAD, daemon=True).start()
    return await done


def is_loading() -> bool:
    """Whether a thread still loads a model, be it that nobody waits for it any more."""
    return any(thread.name == _THREAD for thread in threading.enumerate())


def leave_a_core(torch: ModuleType) -> None:
    """Compute on all cores that we may use but one, unless the environment says how many.

    torch's threads wait for each other hundreds of times a step. With one for every core, each wait
    lasts as long as what else runs there: the event loop, Redis, the API server.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, min(torch.get_num_threads(), machine.processors() - 1)))
