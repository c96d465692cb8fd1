"""POST /v1/messages: Anthropic's dialect, on the same jobs as chat."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from queueserve.api.answers import StreamAnswer, WholeAnswer
from queueserve.api.jobs import chat_jobs
from queueserve.api.render_messages import Message, MessageEvents, WholeMessage
from queueserve.api.requests import JSONRoute, ServicesOf
from queueserve.api.routes.generate import identify
from queueserve.api.schemas.messages import MessagesRequest
from queueserve.api.tools import parsing_of
from queueserve.api.translate_messages import to_chat

router = APIRouter(route_class=JSONRoute)


@router.post("/messages", response_class=Response)
async def create_message(body: MessagesRequest, request: Request, services: ServicesOf) -> Response:
    """Answer a conversation with the next message, in Anthropic's shapes."""
    chat = to_chat(body)
    identity = await identify("msg_", chat, request, services)
    card = await services.model(body.model, "chat")
    jobs = chat_jobs(chat, identity, card, services.settings)
    parser = parsing_of(chat, card, jobs[0].constraint).parser()
    message = Message(identity.reply_id, body.model, parser)
    if not body.stream:
        return WholeAnswer(services.owner, jobs, WholeMessage(message))
    events = MessageEvents(message, request.state.request_id)
    return StreamAnswer(services.owner, jobs, events, keep_alive=services.settings.keep_alive)
