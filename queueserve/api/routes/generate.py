"""What the routes that generate share: who asks, and how to answer."""

from __future__ import annotations

import time
from collections.abc import Sequence

from fastapi import Request, Response

from queueserve.api.answers import StreamAnswer, WholeAnswer
from queueserve.api.headers import header
from queueserve.api.jobs import Identity, tenant_of
from queueserve.api.render import Chunks, Reply, Shape, Whole
from queueserve.api.render_details import (
    DetailedChunks,
    DetailedParsedChunks,
    DetailedWhole,
    Details,
)
from queueserve.api.render_parsed import ParsedChunks, ParsedWhole
from queueserve.api.requests import Services
from queueserve.api.schemas.data import ModelRequest
from queueserve.api.schemas.generation import GenerationRequest
from queueserve.api.tools import Parsing
from queueserve.protocol import Job


async def identify(
    prefix: str, body: GenerationRequest | ModelRequest, request: Request, services: Services
) -> Identity:
    """Name the request: by its Idempotency-Key, if it has one. Raises InvalidRequestError."""
    tenant = tenant_of(body, key=request.scope["state"].get("tenant"))
    key = header(request.scope, b"idempotency-key")
    if key is None:
        return Identity.fresh(prefix, tenant=tenant)
    return Identity.of_key(
        prefix,
        key=key,
        path=request.url.path,
        tenant=tenant,
        body=await request.body(),
        secret=services.settings.idempotency_secret,
    )


def answer(
    body: GenerationRequest,
    identity: Identity,
    jobs: Sequence[Job],
    shape: Shape,
    services: Services,
    *,
    parsing: Parsing | None = None,
    details: Details | None = None,
) -> Response:
    """Return the answer that runs the jobs when it is sent.

    Plain text needs neither `parsing` nor `details`.
    """
    reply = Reply(
        shape=shape,
        id=identity.reply_id,
        created=int(time.time()),
        model=body.model,
        jobs=len(jobs),
        choices=body.draws,
        service_tier=body.service_tier,
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
    )
    if details is not None and not details.any:
        details = None
    if not body.stream:
        whole = _whole(reply, jobs, parsing or None, details)
        return WholeAnswer(services.owner, jobs, whole)
    return StreamAnswer(
        services.owner,
        jobs,
        _chunks(reply, jobs, parsing or None, details),
        choices=reply.choices,
        keep_alive=services.settings.keep_alive,
        tells_position=bool(body.stream_options and body.stream_options.include_queue_position),
    )


def _whole(
    reply: Reply, jobs: Sequence[Job], parsing: Parsing | None, details: Details | None
) -> Whole | DetailedWhole:
    whole = ParsedWhole(reply, parsing) if parsing else Whole(reply)
    return DetailedWhole(reply, details, jobs, whole) if details else whole


def _chunks(
    reply: Reply, jobs: Sequence[Job], parsing: Parsing | None, details: Details | None
) -> Chunks:
    if details and parsing:
        return DetailedParsedChunks(reply, details, jobs, parsing)
    if details:
        return DetailedChunks(reply, details, jobs)
    return ParsedChunks(reply, parsing) if parsing else Chunks(reply)
