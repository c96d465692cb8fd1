"""GET /health, /ready and /version: for whoever starts, watches or upgrades this process."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from queueserve import __version__
from queueserve.api.errors import domain_error_response
from queueserve.api.requests import Services, ServicesOf
from queueserve.errors import NoWorkerError, QueueServeError, RedisUnavailableError
from queueserve.queue.skips import counts

router = APIRouter()


@router.head("/health", include_in_schema=False)  # as load balancers ask
@router.get("/health")
async def health() -> dict[str, str]:
    """Say that the process lives, whatever else does not."""
    return {"status": "ok"}


@router.head("/ready", include_in_schema=False, response_model=None)
@router.get("/ready", response_model=dict[str, Any])
async def ready(services: ServicesOf) -> dict[str, Any] | Response:
    """Say whether a request could be served now: 200, or 503 with the reason.

    `skipped` counts what came from Redis and was not ours, by kind, since this process began.
    """
    try:
        await _check(services)
    except QueueServeError as error:  # answered here: the handler of errors would log each one
        services.readiness.found(error)
        return domain_error_response(error)
    services.readiness.found(None)
    return {"status": "ready", **({"skipped": dict(counts)} if counts else {})}


async def _check(services: Services) -> None:
    models = await services.directory.list()
    if not services.owner.ready:
        raise RedisUnavailableError("This server's reply channel is not subscribed.")
    if not models:
        raise NoWorkerError("No worker is registered.")


@router.get("/version")
async def version() -> dict[str, str]:
    """Tell which version this process runs."""
    return {"version": __version__}
