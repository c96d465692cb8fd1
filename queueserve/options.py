"""Command line options that several commands share, each with its environment variable."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import click
import orjson

from queueserve.logs import FORMATS, LEVELS

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class _Positive(click.ParamType[float]):
    """A number above 0 of what `name` says."""

    def __init__(self, name: str) -> None:
        self.name = name

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not 0 < number < math.inf:
            self.fail(f"{value!r} is not a positive number of {self.name}.", param, ctx)
        return number


class Number(click.FloatRange):
    """A number of a range; click's own takes "nan", which no bound refuses, and "inf"."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number, or fail."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


class _Names(click.ParamType[tuple[str, ...]]):
    """Names with commas between them, or a JSON list of them, as FastChat's commands take it."""

    name = "names"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        names = value.split(",")
        if value.lstrip().startswith("["):
            try:
                names = orjson.loads(value)
            except ValueError:
                self.fail("this is no JSON list", param, ctx)
        if not all(isinstance(name, str) and name.strip() for name in names):
            self.fail("every name must have a character", param, ctx)
        return tuple(name.strip() for name in names)


SECONDS = _Positive("seconds")
REQUESTS = _Positive("requests")
NAMES = _Names()
COUNT = click.IntRange(min=1)


def option(name: str, *more: str, envvar: str | None = None, **settings: Any) -> Decorator:
    """`click.option` with the variable QUEUESERVE_<NAME>, shown by `--help`, before `envvar`."""
    positive, _, _ = name.partition("/")  # of --stream/--no-stream
    own = "QUEUESERVE_" + positive.removeprefix("--").replace("-", "_").upper()
    names = [own, envvar] if envvar else own
    return click.option(name, *more, envvar=names, show_envvar=True, show_default=True, **settings)


def options(*together: Decorator) -> Decorator:
    """Several options as one decorator, in their order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for each in reversed(together):
            command = each(command)
        return command

    return decorate


redis_options = options(
    option("--redis-url", envvar="REDIS_URL", help="Redis or Valkey: redis://host:6379/0."),
    option("--prefix", default="qs:", help="What all keys in Redis begin with."),
)
heartbeat_option = option(
    "--heartbeat-timeout",
    type=SECONDS,
    default=15.0,
    help="Seconds without a sign of life after which a process is dead. The same everywhere.",
)
log_options = options(
    option(
        "--log-level",
        type=click.Choice(LEVELS),
        default="warning",
        help="What is logged, to stderr.",
    ),
    option("--log-format", type=click.Choice(FORMATS), default="text"),
)
