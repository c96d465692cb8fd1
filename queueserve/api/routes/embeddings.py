"""POST /v1/embeddings."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from queueserve.api.data import DataAnswer, batched
from queueserve.api.jobs import data_job
from queueserve.api.render_data import Embeddings
from queueserve.api.requests import JSONRoute, ServicesOf
from queueserve.api.routes.generate import identify
from queueserve.api.schemas.embeddings import EmbeddingRequest
from queueserve.protocol import Inputs

router = APIRouter(route_class=JSONRoute)


@router.post("/embeddings", response_class=Response)
async def create_embeddings(
    body: EmbeddingRequest, request: Request, services: ServicesOf
) -> Response:
    """Turn texts, or token ids, into vectors of length 1."""
    identity = await identify("embd-", body, request, services)
    card = await services.model(body.model, "embed")
    inputs = Inputs(
        items=tuple(body.inputs),
        truncate=body.truncate_prompt_tokens,
        dimensions=body.dimensions,
    )
    jobs = batched(data_job("embed", body, identity, card, services.settings), inputs)
    firsts = [job.inputs.first for job in jobs if job.inputs]
    answers = Embeddings(body.model, firsts, base64=body.encoding_format == "base64")
    return DataAnswer(services.owner, jobs, answers)
