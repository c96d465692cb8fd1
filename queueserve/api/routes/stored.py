"""GET, DELETE, /cancel and /input_items of /v1/responses/{id}: the responses that are kept."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Query, Request, Response

from queueserve.api.jobs import DEFAULT_TENANT
from queueserve.api.replay import ReplayAnswer
from queueserve.api.requests import Services, ServicesOf
from queueserve.api.stored import page
from queueserve.errors import InvalidRequestError
from queueserve.queue.responses import UNENDED, StoredResponse

router = APIRouter(prefix="/responses/{response_id}")

_Limit = Annotated[int, Query(ge=1, le=100)]
_After = Annotated[int | None, Query(ge=0)]


def owner_of(request: Request) -> str:
    """Return whose responses a request may see: those of its API key."""
    owner: str = getattr(request.state, "tenant", DEFAULT_TENANT)
    return owner


def shown(stored: StoredResponse, owner: str, services: Services, *, after: int | None) -> Response:
    """Return the response as it stands, or its stream after event number `after`."""
    if after is None:
        return Response(stored.response, media_type="application/json")
    silence = services.settings.keep_alive
    return ReplayAnswer(services.responses, owner, stored, after=after, keep_alive=silence)


@router.get("", response_class=Response)
async def retrieve_response(
    response_id: str,
    request: Request,
    services: ServicesOf,
    *,
    stream: bool = False,
    starting_after: _After = None,
) -> Response:
    """Return a response; of one that runs in the background also its stream, from any event on."""
    owner = owner_of(request)
    stored = await services.responses.get(owner, response_id)
    if not stream:
        return shown(stored, owner, services, after=None)
    if not stored.background:
        raise InvalidRequestError(
            "Only responses that were created with background: true can be streamed again.",
            param="stream",
        )
    return shown(stored, owner, services, after=-1 if starting_after is None else starting_after)


@router.delete("")
async def delete_response(
    response_id: str, request: Request, services: ServicesOf
) -> dict[str, Any]:
    """Delete a response; one that still runs is stopped."""
    owner = owner_of(request)
    stored = await services.responses.get(owner, response_id)
    await services.responses.store.delete(owner, response_id)
    if stored.status in UNENDED:
        await services.owner.stop(stored.pool, stored.job)
    return {"id": response_id, "object": "response", "deleted": True}


@router.post("/cancel", response_class=Response)
async def cancel_response(response_id: str, request: Request, services: ServicesOf) -> Response:
    """Stop a response that runs in the background; one that has ended is returned as it is."""
    owner = owner_of(request)
    stored = await services.responses.get(owner, response_id)
    if not stored.background:
        raise InvalidRequestError("Only a response with background: true can be cancelled.")
    if stored.status in UNENDED:
        ended = await services.responses.end(owner, stored, "cancelled")
        await services.owner.stop(stored.pool, stored.job)
        stored = ended or await services.responses.get(owner, response_id)
    return shown(stored, owner, services, after=None)


@router.get("/input_items")
async def list_input_items(
    response_id: str,
    request: Request,
    services: ServicesOf,
    *,
    after: str | None = None,
    limit: _Limit = 20,
    order: Literal["asc", "desc"] = "desc",
) -> dict[str, Any]:
    """List the items that a response was asked with, page by page."""
    stored = await services.responses.get(owner_of(request), response_id)
    return page(orjson.loads(stored.input), after=after, limit=limit, order=order)
