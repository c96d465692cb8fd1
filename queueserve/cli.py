"""The `queueserve` command.

Every option can be set by an environment variable, QUEUESERVE_ and its name, the same one for every
command that has the option. Commands import what they need when they run, so `--help` is quick.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from queueserve import __version__
from queueserve.errors import QueueServeError

_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

_SECONDS = click.FloatRange(min=0, min_open=True)
_SIZE = click.IntRange(min=1)
_FILE = click.Path(exists=True, dir_okay=False)


def _option(name: str, *more: str, envvar: str | None = None, **settings: Any) -> _Decorator:
    """`click.option` with its environment variable, shown by `--help`, before `envvar`."""
    own = "QUEUESERVE_" + name.removeprefix("--").replace("-", "_").upper()
    names = [own, envvar] if envvar else own
    return click.option(name, *more, envvar=names, show_envvar=True, show_default=True, **settings)


def _options(*together: _Decorator) -> _Decorator:
    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for each in reversed(together):
            command = each(command)
        return command

    return decorate


_redis_options = _options(
    _option("--redis-url", envvar="REDIS_URL", help="Redis or Valkey: redis://host:6379/0."),
    _option("--prefix", default="qs:", help="What all keys in Redis begin with."),
)
_address_options = _options(
    _option("--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 for all."),
    _option("--port", type=click.IntRange(0, 65535), default=8000, help="Port to listen on."),
)
_api_options = _options(
    _option("--queue-timeout", type=_SECONDS, default=60.0, help="Seconds to wait for a slot."),
    _option("--request-timeout", type=_SECONDS, default=600.0, help="Seconds until the end."),
    _option("--max-queue", type=_SIZE, default=10_000, help="Requests that wait, per model."),
    _option("--ssl-keyfile", type=_FILE, help="TLS: the private key."),
    _option("--ssl-certfile", type=_FILE, help="TLS: the certificate."),
)
_heartbeat_option = _option(
    "--heartbeat-timeout",
    type=_SECONDS,
    default=15.0,
    help="Seconds without a sign of life after which a process is dead. The same everywhere.",
)
_log_options = _options(
    _option(
        "--log-level",
        type=click.Choice(["debug", "info", "warning", "error"]),
        default="warning",
        help="What is logged, to stderr.",
    ),
    _option("--log-format", type=click.Choice(["text", "json"]), default="text"),
)


class _Commands(click.Group):
    """Shows a domain error as one line, not as a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except QueueServeError as error:
            raise click.ClickException(error.message) from error


@click.group(cls=_Commands, context_settings={"max_content_width": 100})
@click.version_option(__version__, prog_name="queueserve")
def main() -> None:
    """Serve language models from many workers behind one OpenAI-compatible API."""


@main.command()
@_address_options
@_redis_options
@_api_options
@_heartbeat_option
@_log_options
def serve(log_level: str, log_format: Any, **settings: Any) -> None:
    """Run an API server. Any number may share a Redis."""
    from queueserve import logs
    from queueserve.api.server import run
    from queueserve.settings import ApiSettings

    logs.configure(log_level, log_format)
    run(ApiSettings(**settings))
