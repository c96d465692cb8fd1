"""vLLM's arguments: what QueueServe's options mean there, and what an operator gives after `--`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.utils.argparse_utils import FlexibleArgumentParser

from queueserve.errors import EngineError

EngineArgs: TypeAlias = Any  # an AsyncEngineArgs: vllm is not followed by mypy

_DEFAULTS = (
    # Classes of priority decide in vLLM, too: who is preempted when the cache is full.
    *("--scheduling-policy", "priority"),
    # Constraints reach it in llguidance's language, as all other engines.
    *("--structured-outputs-config.backend", "guidance"),
    "--disable-log-stats",  # they cost time on the event loop, and would go nowhere
)


class _Parser(FlexibleArgumentParser):  # type: ignore[misc]
    def error(self, message: str) -> NoReturn:
        raise EngineError(f"vLLM's arguments: {message}")


def engine_args(model: str, options: Mapping[str, object], given: Sequence[str]) -> EngineArgs:
    """The arguments of an engine for `model`: `given` ones go before `options`, which skip None.

    Raises EngineError for what vLLM does not know.
    """
    parser = AsyncEngineArgs.add_cli_args(_Parser(prog="vLLM", add_help=False))
    line = ["--model", model, *_DEFAULTS]
    for name, value in options.items():
        if value is True:
            line.append(name)
        elif value is not None and value is not False:
            line += [name, str(value)]
    args = AsyncEngineArgs.from_cli_args(parser.parse_args([*line, *given]))
    if args.enable_lora and current_platform.is_cpu():
        # Beside adapters, vLLM's kernels for CPUs apply what is in the last place to sequences
        # that have none: nothing may be there.
        args.max_loras += 1
    return args
