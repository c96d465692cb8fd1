"""POST /v1/responses, on the same jobs as chat."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request, Response

from queueserve.api.answers import StreamAnswer, WholeAnswer
from queueserve.api.jobs import chat_jobs
from queueserve.api.render_responses import Answer, ResponseEvents, WholeResponse
from queueserve.api.requests import JSONRoute, ServicesOf
from queueserve.api.routes.generate import identify
from queueserve.api.schemas.responses import ResponsesRequest
from queueserve.api.tools import parsing_of
from queueserve.api.translate_responses import head_of, to_chat

router = APIRouter(route_class=JSONRoute)


@router.post("/responses", response_class=Response)
async def create_response(
    body: ResponsesRequest, request: Request, services: ServicesOf
) -> Response:
    """Answer with the next items of a conversation."""
    chat = to_chat(body)
    identity = await identify("resp_", chat, request, services)
    card = await services.model(body.model, "chat")
    jobs = chat_jobs(chat, identity, card, services.settings)
    head = head_of(body, reply_id=identity.reply_id, created=int(time.time()))
    answer = Answer(head, parsing_of(chat, card, jobs[0].constraint).parser())
    if not body.stream:
        return WholeAnswer(services.owner, jobs, WholeResponse(answer))
    events = ResponseEvents(answer)
    return StreamAnswer(services.owner, jobs, events, keep_alive=services.settings.keep_alive)
