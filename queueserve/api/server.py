"""Run the API server: uvicorn on uvloop and httptools, with TLS if asked for.

Shutdown, on SIGTERM or SIGINT: no new connections; what runs may end within the grace time; what
is left then gets an error (as an event of its stream, or 503); the lifespan closes the rest.
"""

from __future__ import annotations

import contextlib
import math
import signal
import ssl
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

from queueserve import garbage
from queueserve.api.app import create_app
from queueserve.api.connections import bounded
from queueserve.settings import ApiSettings

_IDLE_CONNECTION = 75  # seconds; longer than clients and proxies keep theirs, so that they close


class _Server(uvicorn.Server):
    """Ends with a return, not by raising the signal again: a stop asked for is no failure."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle the signals while the server runs."""
        stops = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in stops}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def config(app: FastAPI, settings: ApiSettings) -> uvicorn.Config:
    """Return uvicorn's configuration; logging stays as the process has configured it."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=bounded(settings.write_timeout),
        ws="none",
        lifespan="on",
        log_config=None,
        server_header=False,
        timeout_keep_alive=_IDLE_CONNECTION,
        timeout_graceful_shutdown=math.ceil(settings.shutdown_grace),
        ssl_keyfile=settings.ssl_keyfile,
        ssl_keyfile_password=settings.ssl_keyfile_password,
        ssl_certfile=settings.ssl_certfile,
        ssl_ca_certs=settings.ssl_ca_certs,
        ssl_cert_reqs=ssl.CERT_REQUIRED if settings.ssl_ca_certs else ssl.CERT_NONE,
    )


def run(settings: ApiSettings) -> None:
    """Serve until SIGINT or SIGTERM. Must run in the main thread.

    Exits with status 3 if it cannot start, after logging why.
    """
    server = _Server(config(create_app(settings), settings))
    garbage.settle()
    server.run()
