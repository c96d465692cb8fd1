"""POST /v1/completions."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from queueserve.api.jobs import completion_jobs
from queueserve.api.render import COMPLETION
from queueserve.api.render_details import completion_details
from queueserve.api.requests import JSONRoute, ServicesOf
from queueserve.api.routes.generate import answer, identify
from queueserve.api.schemas.completions import CompletionRequest

router = APIRouter(route_class=JSONRoute)


@router.post("/completions", response_class=Response)
async def create_completion(
    body: CompletionRequest, request: Request, services: ServicesOf
) -> Response:
    """Continue one prompt or several; the index runs over prompts times choices."""
    identity = await identify("cmpl-", body, request, services)
    card = await services.model(body.model, "completion")
    jobs = completion_jobs(body, identity, card, services.settings)
    return answer(body, identity, jobs, COMPLETION, services, details=completion_details(body))
