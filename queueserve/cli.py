"""The `queueserve` command.

Every option can be set by an environment variable, QUEUESERVE_ and its name, the same one for every
command that has the option. Commands import what they need when they run, so `--help` is quick.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from queueserve import __version__
from queueserve.errors import QueueServeError, RedisConfigurationError
from queueserve.options import (
    COUNT,
    NAMES,
    REQUESTS,
    SECONDS,
    Number,
    heartbeat_option,
    log_options,
    option,
    redis_options,
)
from queueserve.server_options import (
    DEFAULT,
    FILE,
    PORT,
    access_options,
    address_options,
    grace_option,
    request_options,
    tls_options,
)
from queueserve.settings import ApiSettings, Cors

if TYPE_CHECKING:
    from queueserve.queue.orders import Order


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
@address_options
@redis_options
@request_options
@access_options
@tls_options
@option("--ssl-ca-certs", type=FILE, help="TLS: who must have signed a client's certificate.")
@heartbeat_option
@grace_option
@log_options
def serve(
    redis_url: str | None,
    prefix: str,
    grace: float,
    log_level: str,
    log_format: Any,
    *,
    api_keys: tuple[str, ...] | None,
    allowed_origins: tuple[str, ...] | None,
    allowed_methods: tuple[str, ...],
    allowed_headers: tuple[str, ...],
    allow_credentials: bool,
    allowed_image_hosts: tuple[str, ...] | None,
    **rest: Any,
) -> None:
    """Run an API server. Any number of them may share a Redis."""
    from queueserve import logs
    from queueserve.api.server import run
    from queueserve.queue.preflight import check_at_start

    logs.configure(log_level, log_format)
    redis_url = redis_url or DEFAULT.redis_url
    try:
        settings = ApiSettings(
            redis_url=redis_url,
            key_prefix=prefix,
            shutdown_grace=grace,
            api_keys=api_keys or (),
            cors=Cors(
                origins=allowed_origins or (),
                methods=allowed_methods,
                headers=allowed_headers,
                credentials=allow_credentials,
            ),
            allowed_image_hosts=tuple(host.lower() for host in allowed_image_hosts or ()),
            **rest,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    try:
        asyncio.run(check_at_start(redis_url))
    except RedisConfigurationError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(os.EX_CONFIG)
    run(settings)


@main.command()
@address_options
@redis_options
@option("--redis-port", type=PORT, help="Port of the embedded Redis.")
@option("--data-dir", type=click.Path(file_okay=False, path_type=Path), help="Where data is kept.")
@option("--engine", default="auto", help="What runs the model: see queueserve-worker --help.")
@option("--model-path", multiple=True, help="A file, a directory or a hub id.  [default: smollm2]")
@option("--model-names", multiple=True, help="Its names, with commas; once per --model-path.")
@option("--workers", type=COUNT, default=1, help="Workers, each a process with the model.")
@request_options
@access_options
@tls_options
@heartbeat_option
@grace_option
@log_options
@click.argument("worker_options", nargs=-1, type=click.UNPROCESSED)
def up(**given: Any) -> None:
    """Run everything: an embedded Redis (unless --redis-url is given), an API server and workers.

    Options after -- go to the workers, as in: queueserve up -- --limit-worker-concurrency 4
    """
    from queueserve import logs
    from queueserve.child import CONFIGURATION_ERROR, ChildConfigurationError
    from queueserve.up import Supervisor
    from queueserve.up_settings import up_settings

    logs.configure(given["log_level"], given["log_format"])
    try:
        asyncio.run(Supervisor(up_settings(given)).run())
    except ChildConfigurationError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(CONFIGURATION_ERROR)


@main.command()
@redis_options
@option("--json", "as_json", is_flag=True, help="For programs.")
def status(redis_url: str | None, prefix: str, *, as_json: bool) -> None:
    """Show models, queues and workers, as Redis has them."""
    from queueserve.status import read, render_json, render_table

    seen = asyncio.run(read(redis_url or DEFAULT.redis_url, prefix))
    click.echo(render_json(seen) if as_json else render_table(seen))


@main.command()
@redis_options
@option("--json", "as_json", is_flag=True, help="For programs.")
@option("--show", metavar="JOB", help="One of them in full, with what was asked for.")
@option("--clear", is_flag=True, help="Delete them.")
@click.argument("model", required=False)
def dead(
    redis_url: str | None,
    prefix: str,
    model: str | None,
    show: str | None,
    *,
    as_json: bool,
    clear: bool,
) -> None:
    """List jobs that were given up because they ended their workers; of MODEL, or of all."""
    from queueserve import dead as letters

    if clear and show:
        raise click.UsageError("--clear deletes all of a model's, --show shows one: not both")
    where = (redis_url or DEFAULT.redis_url, prefix, model)
    if clear:
        click.echo(f"{asyncio.run(letters.forget(*where))} deleted")
        return
    found = asyncio.run(letters.read(*where))
    chosen = [letters.find(found, show)] if show else found
    if as_json:
        click.echo(letters.render_json(chosen))
    else:
        click.echo(letters.render_one(chosen[0]) if show else letters.render_table(chosen))


_on_option = option("--on", required=True, metavar="WORKER", help="A worker, or its host-pid.")
_within_option = option(
    "--within", type=SECONDS, default=600.0, help="Seconds in which it must be done."
)


@main.command()
@redis_options
@_on_option
@option("--model-names", type=NAMES, help="What clients call it, with commas.")
@option("--engine", default="auto", help="What runs it: see queueserve-worker --help.")
@_within_option
@click.argument("model_path")
def load(model_path: str, model_names: tuple[str, ...] | None, engine: str, **where: Any) -> None:
    """Load one more model into a running worker process."""
    from queueserve.queue.orders import Load

    _order(Load(model_path, model_names or (), engine), **where)


@main.command()
@redis_options
@_on_option
@_within_option
@click.argument("model")
def unload(model: str, **where: Any) -> None:
    """Take a model out of a running worker process, once what runs has ended."""
    from queueserve.queue.orders import Unload

    _order(Unload(model), **where)


def _order(order: Order, *, redis_url: str | None, prefix: str, on: str, within: float) -> None:
    from queueserve.queue.orders import give

    url = redis_url or DEFAULT.redis_url
    click.echo(asyncio.run(give(url, prefix, on, order, within=within)))


@main.command()
@option("--url", default=f"http://{DEFAULT.host}:{DEFAULT.port}", help="The API server.")
@option("--model", help="The model's name.  [default: the first one]")
@option("--message", help="Ask this alone and print the answer.")
@option("--temperature", type=Number(0, 2), default=0.7, help="0 is always the same.")
@option("--max-tokens", type=COUNT, default=512, help="The longest answer.")
@option("--api-key", help="Where the server wants one.")
def chat(
    message: str | None, url: str, model: str | None, api_key: str | None, **sampling: Any
) -> None:
    """Talk to a model."""
    from queueserve.chat import converse, open_chat, say

    with open_chat(url, model, api_key=api_key, **sampling) as talk:
        if message is None:
            converse(talk)
        else:
            say(talk, message)


@main.command()
@click.argument("url")
@option("--model", help="The model's name.  [default: the first one]")
@option("--concurrency", type=COUNT, default=16, help="Clients, or with --rate open requests.")
@option("--requests", type=COUNT, help="How many in all.  [default: as --duration allows]")
@option("--duration", type=SECONDS, help="Seconds in which requests begin.  [default: 10]")
@option("--rate", type=REQUESTS, help="Begun in a second, whether others have ended or not.")
@option("--prompt-tokens", type=COUNT, default=32, help="About: so many words.")
@option("--max-tokens", type=COUNT, default=128, help="Tokens of every answer.")
@option("--pause", type=SECONDS, help="Clients wait a random time up to this before they ask.")
@option("--api-key", help="Sent as a bearer token.")
@option("--stream/--no-stream", default=True, help="How answers come.")
@option("--usage/--no-usage", default=True, help="Ask streams for the server's count of tokens.")
@option("--json", "as_json", is_flag=True, help="For programs.")
def bench(url: str, *, as_json: bool, **given: Any) -> None:
    """Measure any OpenAI-compatible server under load."""
    from queueserve.bench.command import run
    from queueserve.bench.generator import Plan

    if given["requests"] is None and given["duration"] is None:
        given["duration"] = 10.0
    given["pause"] = given["pause"] or 0.0
    click.echo(run(Plan(url=url, **given), as_json=as_json))


if __name__ == "__main__":
    main()
