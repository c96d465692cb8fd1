"""POST /v1/messages: Anthropic's dialect, on the same jobs as chat."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from msgspec.structs import replace

from queueserve.api.answers import StreamAnswer, WholeAnswer
from queueserve.api.data import DataAnswer
from queueserve.api.jobs import chat_jobs
from queueserve.api.render_messages import Message, MessageEvents, TokenCount, WholeMessage
from queueserve.api.requests import JSONRoute, ServicesOf
from queueserve.api.routes.generate import identify
from queueserve.api.schemas.messages import CountTokensRequest, MessagesRequest
from queueserve.api.tools import parsing_of
from queueserve.api.translate_messages import to_chat, to_prompt
from queueserve.protocol import Inputs

router = APIRouter(route_class=JSONRoute)


@router.post("/messages/count_tokens", response_class=Response)
async def count_tokens(
    body: CountTokensRequest, request: Request, services: ServicesOf
) -> Response:
    """Tell how many tokens the prompt of such a message has, in the model's chat template."""
    chat = to_prompt(body)
    identity = await identify("tok-", chat, request, services)
    card = await services.model(body.model, "chat")
    (job,) = chat_jobs(chat, identity, card, services.settings)
    count = replace(job, kind="tokenize", constraint=None, inputs=Inputs())
    return DataAnswer(services.owner, [count], TokenCount())


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
