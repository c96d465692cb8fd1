"""What an API server can be told; the command line and the environment fill it in."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

IDEMPOTENCY_SECRET = "queueserve"  # noqa: S105 - a known default, see ApiSettings
"""The default; who knows it and another tenant's Idempotency-Key knows that request's job id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cors:
    """Which pages of other origins a browser may let read the answers: by default, none."""

    origins: tuple[str, ...] = ()  # "*": all
    methods: tuple[str, ...] = ("*",)
    headers: tuple[str, ...] = ("*",)
    credentials: bool = False  # cookies and the like, too

    def __post_init__(self) -> None:
        if self.credentials and "*" in self.origins:
            raise ValueError("allow_credentials needs allowed_origins by name: * would mean all")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSettings:
    """The settings of one API server process; all times in seconds.

    `idempotency_secret` keys the HMAC that turns an Idempotency-Key into a job id. It must be the
    same on all API servers of a deployment, and should be its own: job ids show in Redis and in
    answers. `ssl_ca_certs` makes the server ask for client certificates, and accept only those that
    these authorities have signed.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    redis_url: str = "redis://127.0.0.1:6379/0"
    key_prefix: str = "qs:"
    heartbeat_timeout: float = 15.0
    queue_timeout: float = 60.0  # until a job must have been dispatched
    request_timeout: float = 600.0  # until a job must have ended
    max_queue: int = 10_000  # waiting jobs per model
    max_queue_per_tenant: int = 5_000
    max_body_bytes: int = 16 * 1024 * 1024
    keep_alive: float = 15.0  # silence after which a stream gets a comment
    write_timeout: float = 30.0  # until a client that does not read is cut off
    response_ttl: float = 30 * 86400.0  # of what /v1/responses stores; 0: it stores nothing
    max_response_bytes: int = 256 * 1024 * 1024  # of all that it stores
    api_keys: tuple[str, ...] = field(default=(), repr=False)  # none: everybody may ask
    cors: Cors = Cors()
    allowed_image_hosts: tuple[str, ...] = ()  # in lower case, with the port unless it is usual
    shutdown_grace: float = 30.0  # for running requests, once the server was told to stop
    idempotency_secret: str = IDEMPOTENCY_SECRET
    ssl_keyfile: Path | None = None
    ssl_keyfile_password: str | None = None
    ssl_certfile: Path | None = None  # may hold the key, too
    ssl_ca_certs: Path | None = None

    def __post_init__(self) -> None:
        if self.ssl_certfile is None and (self.ssl_keyfile or self.ssl_ca_certs):
            raise ValueError("ssl_keyfile and ssl_ca_certs need an ssl_certfile")
        if not all(key.isascii() and key.isprintable() for key in self.api_keys):
            raise ValueError("an API key may have ASCII characters only: HTTP cannot carry others")
