"""SGLang's arguments: what QueueServe's options mean there, and what an operator gives."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from sglang.srt.server_args import ServerArgs

from queueserve.errors import EngineError

EngineArgs: TypeAlias = Any  # a ServerArgs: sglang is not followed by mypy

_DEFAULTS = (
    # Classes of priority decide in SGLang, too; ours count from 0, which goes first.
    "--enable-priority-scheduling",
    "--schedule-low-priority-values-first",
    # Constraints reach it in llguidance's language, as all other engines.
    *("--grammar-backend", "llguidance"),
    "--incremental-streaming-output",  # new tokens only, not all of them again
    *("--batch-notify-size", "65536"),  # a step is never cut in parts
    *("--log-level", "warning"),
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise EngineError(f"SGLang's arguments: {message}")


def engine_args(
    model: str,
    options: Mapping[str, object],
    *,
    adapters: Mapping[str, Path],
    given: Sequence[str],
) -> EngineArgs:
    """The arguments of an engine for `model`: `given` ones go before `options`, which skip None.

    Raises EngineError for what SGLang does not know.
    """
    parser = _Parser(prog="SGLang", add_help=False)
    ServerArgs.add_cli_args(parser)
    line = ["--model-path", model, *_DEFAULTS]
    for name, value in options.items():
        if value is not None:
            line += [name, str(value)]
    if adapters:
        line += ["--enable-lora", "--lora-paths"]
        line += [f"{name}={path}" for name, path in adapters.items()]
    return ServerArgs.from_cli_args(parser.parse_args([*line, *given]))
