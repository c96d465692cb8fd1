"""GET /health, /ready and /version: for whoever starts, watches or upgrades this process."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from queueserve import __version__
from queueserve.api.requests import ServicesOf
from queueserve.errors import NoWorkerError, RedisUnavailableError
from queueserve.queue.skips import counts

router = APIRouter()


@router.head("/health", include_in_schema=False)  # as load balancers ask
@router.get("/health")
async def health() -> dict[str, str]:
    """Say that the process lives, whatever else does not."""
    return {"status": "ok"}


@router.head("/ready", include_in_schema=False)
@router.get("/ready")
async def ready(services: ServicesOf) -> dict[str, Any]:
    """Say whether a request could be served now: 200, or 503 with the reason.

    `skipped` counts what came from Redis and was not ours, by kind, since this process began.
    """
    models = await services.directory.list()
    if not services.owner.ready:
        raise RedisUnavailableError("This server's reply channel is not subscribed.")
    if not models:
        raise NoWorkerError("No worker is registered.")
    return {"status": "ready", **({"skipped": dict(counts)} if counts else {})}


@router.get("/version")
async def version() -> dict[str, str]:
    """Tell which version this process runs."""
    return {"version": __version__}
