"""POST /v1/chat/completions."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from queueserve.api.jobs import chat_jobs
from queueserve.api.render import CHAT
from queueserve.api.requests import JSONRoute, ServicesOf
from queueserve.api.routes.generate import answer, identify
from queueserve.api.schemas.chat import ChatCompletionRequest

router = APIRouter(route_class=JSONRoute)


@router.post("/chat/completions", response_class=Response)
async def create_chat_completion(
    body: ChatCompletionRequest, request: Request, services: ServicesOf
) -> Response:
    """Answer a conversation with the next message."""
    identity = await identify("chatcmpl-", body, request, services)
    card = await services.directory.find(body.model)
    jobs = chat_jobs(body, identity, card, services.settings)
    return answer(body, identity, jobs, CHAT, services)
