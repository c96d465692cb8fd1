"""The options of an API server, which the commands that start one share."""

from __future__ import annotations

import os
from pathlib import Path

import click

from queueserve.options import COUNT, NAMES, SECONDS, Number, option, options
from queueserve.settings import ApiSettings

PORT = click.IntRange(0, 65535)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)

DEFAULT = ApiSettings()

address_options = options(
    option("--host", default=DEFAULT.host, help="Address to listen on; 0.0.0.0 for all."),
    option("--port", type=PORT, default=DEFAULT.port, help="Port to listen on."),
)
request_options = options(
    option(
        "--queue-timeout",
        type=SECONDS,
        default=DEFAULT.queue_timeout,
        help="Seconds that a request waits for a free slot.",
    ),
    option(
        "--request-timeout",
        type=SECONDS,
        default=DEFAULT.request_timeout,
        help="Seconds until a request must have ended.",
    ),
    option(
        "--max-queue",
        type=COUNT,
        default=DEFAULT.max_queue,
        help="Requests that may wait, for each model.",
    ),
    option(
        "--max-queue-per-tenant",
        type=COUNT,
        default=DEFAULT.max_queue_per_tenant,
        help="Requests of one tenant that may wait, for each model.",
    ),
    option(
        "--max-body-bytes",
        type=COUNT,
        default=DEFAULT.max_body_bytes,
        help="Size of the largest request.",
    ),
    option(
        "--allowed-image-hosts",
        type=NAMES,
        help="Hosts, as host or host:port, that links to images may name: the server behind a "
        "worker fetches them. [default: none, data URLs only]",
    ),
    option(
        "--keep-alive",
        type=SECONDS,
        default=DEFAULT.keep_alive,
        help="Seconds of silence after which a stream gets a comment.",
    ),
    option(
        "--write-timeout",
        type=SECONDS,
        default=DEFAULT.write_timeout,
        help="Seconds until a client that does not read is cut off.",
    ),
    option(
        "--response-ttl",
        type=Number(min=0),
        default=DEFAULT.response_ttl,
        help="Seconds for which /v1/responses stores a response; 0: it stores none.",
    ),
    option(
        "--max-response-bytes",
        type=COUNT,
        default=DEFAULT.max_response_bytes,
        help="Size of all stored responses; then the oldest ones go.",
    ),
    option(
        "--idempotency-secret",
        default=DEFAULT.idempotency_secret,
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


access_options = options(
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
tls_options = options(
    option("--ssl-keyfile", type=FILE, help="TLS: the private key."),
    option("--ssl-keyfile-password", help="TLS: the key's password."),
    option("--ssl-certfile", type=FILE, help="TLS: the certificate, with its chain."),
)
grace_option = option(
    "--grace",
    type=SECONDS,
    default=DEFAULT.shutdown_grace,
    help="Seconds for running requests, once it was told to stop.",
)
