"""POST /v1/chat/completions."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from queueserve.api.jobs import chat_jobs
from queueserve.api.render import CHAT
from queueserve.api.render_details import chat_details
from queueserve.api.requests import JSONRoute, ServicesOf
from queueserve.api.routes.generate import answer, identify
from queueserve.api.schemas.chat import ChatCompletionRequest
from queueserve.api.tools import parsing_of

router = APIRouter(route_class=JSONRoute)


@router.post("/chat/completions", response_class=Response)
async def create_chat_completion(
    body: ChatCompletionRequest, request: Request, services: ServicesOf
) -> Response:
    """Answer a conversation with the next message."""
    identity = await identify("chatcmpl-", body, request, services)
    card = await services.model(body.model, "chat")
    jobs = chat_jobs(body, identity, card, services.settings)
    parsing = parsing_of(body, card, jobs[0].constraint)
    details = chat_details(body)
    return answer(body, identity, jobs, CHAT, services, parsing=parsing, details=details)
