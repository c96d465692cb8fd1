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
    SECONDS,
    heartbeat_option,
    log_options,
    option,
    options,
    redis_options,
)
from queueserve.settings import ApiSettings, Cors

if TYPE_CHECKING:
    from queueserve.queue.orders import Order
    from queueserve.up import UpSettings

_PORT = click.IntRange(0, 65535)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)

_DEFAULT = ApiSettings()

_address_options = options(
    option("--host", default=_DEFAULT.host, help="Address to listen on; 0.0.0.0 for all."),
    option("--port", type=_PORT, default=_DEFAULT.port, help="Port to listen on."),
)
_request_options = options(
    option(
        "--queue-timeout",
        type=SECONDS,
        default=_DEFAULT.queue_timeout,
        help="Seconds that a request waits for a free slot.",
    ),
    option(
        "--request-timeout",
        type=SECONDS,
        default=_DEFAULT.request_timeout,
        help="Seconds until a request must have ended.",
    ),
    option(
        "--max-queue",
        type=COUNT,
        default=_DEFAULT.max_queue,
        help="Requests that may wait, for each model.",
    ),
    option(
        "--max-queue-per-tenant",
        type=COUNT,
        default=_DEFAULT.max_queue_per_tenant,
        help="Requests of one tenant that may wait, for each model.",
    ),
    option(
        "--max-body-bytes",
        type=COUNT,
        default=_DEFAULT.max_body_bytes,
        help="Size of the largest request.",
    ),
    option(
        "--keep-alive",
        type=SECONDS,
        default=_DEFAULT.keep_alive,
        help="Seconds of silence after which a stream gets a comment.",
    ),
    option(
        "--write-timeout",
        type=SECONDS,
        default=_DEFAULT.write_timeout,
        help="Seconds until a client that does not read is cut off.",
    ),
    option(
        "--response-ttl",
        type=click.FloatRange(min=0),
        default=_DEFAULT.response_ttl,
        help="Seconds for which /v1/responses stores a response; 0: it stores none.",
    ),
    option(
        "--max-response-bytes",
        type=COUNT,
        default=_DEFAULT.max_response_bytes,
        help="Size of all stored responses; then the oldest ones go.",
    ),
    option(
        "--idempotency-secret",
        default=_DEFAULT.idempotency_secret,
        help="Turns an Idempotency-Key into a job id; the same on all API servers.",
    ),
)


def _has_a_key(
    _ctx: click.Context, _param: click.Parameter, keys: tuple[str, ...] | None
) -> tuple[str, ...] | None:
    """Refuse an empty list: who has lost the keys on their way here wants no open server.

    click takes an empty variable for one that is not set.
    """
    if not keys and (keys is not None or "QUEUESERVE_API_KEYS" in os.environ):
        raise click.BadParameter("there is no key in it. For a server without keys, unset it.")
    return keys


_access_options = options(
    option(
        "--api-keys",
        type=NAMES,
        callback=_has_a_key,
        help="Keys with commas between them; who has none gets 401. Everybody on this machine can "
        "read a command line: the variable is the better place.",
    ),
    option(
        "--allowed-origins",
        type=NAMES,
        help="Origins whose pages may ask, in a browser: commas between them, or *.",
    ),
    option("--allowed-methods", type=NAMES, default="*", help="What such pages may send."),
    option("--allowed-headers", type=NAMES, default="*", help="What such pages may send."),
    option("--allow-credentials", is_flag=True, help="Such pages may send cookies, too."),
)
_tls_options = options(
    option("--ssl-keyfile", type=_FILE, help="TLS: the private key."),
    option("--ssl-keyfile-password", help="TLS: the key's password."),
    option("--ssl-certfile", type=_FILE, help="TLS: the certificate, with its chain."),
)
_grace_option = option(
    "--grace",
    type=SECONDS,
    default=_DEFAULT.shutdown_grace,
    help="Seconds for running requests, once it was told to stop.",
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
@redis_options
@_request_options
@_access_options
@_tls_options
@option("--ssl-ca-certs", type=_FILE, help="TLS: who must have signed a client's certificate.")
@heartbeat_option
@_grace_option
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
    **rest: Any,
) -> None:
    """Run an API server. Any number of them may share a Redis."""
    from queueserve import logs
    from queueserve.api.server import run
    from queueserve.queue.preflight import check_at_start

    logs.configure(log_level, log_format)
    redis_url = redis_url or _DEFAULT.redis_url
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
@_address_options
@redis_options
@option("--redis-port", type=_PORT, help="Port of the embedded Redis.")
@option("--data-dir", type=click.Path(file_okay=False, path_type=Path), help="Where data is kept.")
@option("--engine", default="auto", help="What runs the model: see queueserve-worker --help.")
@option("--model-path", multiple=True, help="A file, a directory or a hub id.  [default: smollm2]")
@option("--model-names", multiple=True, help="Its names, with commas; once per --model-path.")
@option("--workers", type=COUNT, default=1, help="Workers, each a process with the model.")
@_request_options
@_access_options
@_tls_options
@heartbeat_option
@_grace_option
@log_options
@click.argument("worker_options", nargs=-1, type=click.UNPROCESSED)
def up(**given: Any) -> None:
    """Run everything: an embedded Redis (unless --redis-url is given), an API server and workers.

    Options after -- go to the workers, as in: queueserve up -- --limit-worker-concurrency 4
    """
    from queueserve import logs
    from queueserve.child import CONFIGURATION_ERROR, ChildConfigurationError
    from queueserve.up import Supervisor

    logs.configure(given["log_level"], given["log_format"])
    try:
        asyncio.run(Supervisor(_up_settings(given)).run())
    except ChildConfigurationError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(CONFIGURATION_ERROR)


@main.command()
@redis_options
@option("--json", "as_json", is_flag=True, help="For programs.")
def status(redis_url: str | None, prefix: str, *, as_json: bool) -> None:
    """Show models, queues and workers, as Redis has them."""
    from queueserve.status import read, render_json, render_table

    seen = asyncio.run(read(redis_url or _DEFAULT.redis_url, prefix))
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
    where = (redis_url or _DEFAULT.redis_url, prefix, model)
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

    url = redis_url or _DEFAULT.redis_url
    click.echo(asyncio.run(give(url, prefix, on, order, within=within)))


@main.command()
@option("--url", default=f"http://{_DEFAULT.host}:{_DEFAULT.port}", help="The API server.")
@option("--model", help="The model's name.  [default: the first one]")
@option("--message", help="Ask this alone and print the answer.")
@option("--temperature", type=click.FloatRange(0, 2), default=0.7, help="0 is always the same.")
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
@option("--rate", type=SECONDS, help="Requests a second, whether others have ended or not.")
@option("--prompt-tokens", type=COUNT, default=32, help="About: so many words.")
@option("--max-tokens", type=COUNT, default=128, help="Tokens of every answer.")
@option("--pause", type=SECONDS, help="Clients wait a random time up to this before they ask.")
@option("--api-key", help="Sent as a bearer token.")
@option("--stream/--no-stream", default=True, help="How answers come.")
@option("--usage/--no-usage", default=True, help="Ask streams for the server's count of tokens.")
@option("--json", "as_json", is_flag=True, help="For programs.")
def bench(url: str, *, as_json: bool, **given: Any) -> None:
    """Measure any OpenAI-compatible server under load."""
    from queueserve.load.command import run
    from queueserve.load.generator import Plan

    if given["requests"] is None and given["duration"] is None:
        given["duration"] = 10.0
    given["pause"] = given["pause"] or 0.0
    click.echo(run(Plan(url=url, **given), as_json=as_json))


def _up_settings(given: dict[str, Any]) -> UpSettings:
    from queueserve.up import UpSettings

    data_dir = given["data_dir"] or _default_data_dir()
    models = given["model_path"] or (() if given["engine"] == "fake" else ("smollm2",))
    values = {**given, "data_dir": data_dir, "model_path": models}
    return UpSettings(
        host=given["host"],
        port=given["port"],
        data_dir=data_dir,
        redis_url=given["redis_url"],
        redis_port=given["redis_port"],
        prefix=given["prefix"],
        heartbeat_timeout=given["heartbeat_timeout"],
        grace=given["grace"],
        workers=given["workers"],
        model=", ".join(models) or "the fake engine",
        tls=given["ssl_certfile"] is not None,
        keyed=given["api_keys"] is not None,
        api_arguments=_arguments(values, *_FOR_BOTH, *_FOR_THE_API),
        worker_arguments=(
            *_arguments(values, *_FOR_BOTH, *_FOR_WORKERS),
            *given["worker_options"],
        ),
        secrets=_secrets(given),
    )


_FOR_BOTH = ("prefix", "heartbeat_timeout", "grace", "log_level", "log_format")
_FOR_THE_API = (
    "queue_timeout",
    "request_timeout",
    "max_queue",
    "max_queue_per_tenant",
    "max_body_bytes",
    "keep_alive",
    "write_timeout",
    "response_ttl",
    "max_response_bytes",
    "allowed_origins",
    "allowed_methods",
    "allowed_headers",
    "allow_credentials",
    "ssl_keyfile",
    "ssl_certfile",
)
_FOR_WORKERS = ("engine", "model_path", "model_names", "data_dir")
_SECRET = ("ssl_keyfile_password", "idempotency_secret", "api_keys")
_NAMES = ("api_keys", "allowed_origins", "allowed_methods", "allowed_headers")  # one value each


def _secrets(given: dict[str, Any]) -> dict[str, str]:
    """The variables for what must not stand on a command line."""
    return {
        f"QUEUESERVE_{name.upper()}": ",".join(given[name]) if name in _NAMES else given[name]
        for name in _SECRET
        if given[name] is not None
    }


def _arguments(values: dict[str, Any], *names: str) -> tuple[str, ...]:
    """The command line that gives another command the same values."""
    line: list[str] = []
    for name in names:
        value, flag = values[name], "--" + name.replace("_", "-")
        if isinstance(value, bool):
            line += [flag] if value else []
            continue
        if name in _NAMES and value is not None:
            value = ",".join(value)
        for each in value if isinstance(value, tuple) else (value,):
            if each is not None:
                line += [flag, str(each)]
    return tuple(line)


def _default_data_dir() -> Path:
    home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(home) / "queueserve"


if __name__ == "__main__":
    main()
