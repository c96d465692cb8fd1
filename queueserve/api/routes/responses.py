"""POST /v1/responses, on the same jobs as chat."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request, Response
from msgspec.structs import replace

from queueserve.api.answers import Keep, StreamAnswer, WholeAnswer
from queueserve.api.background import Work
from queueserve.api.data import DataAnswer, run_all
from queueserve.api.jobs import Identity, chat_jobs
from queueserve.api.render_responses import ResponseEvents
from queueserve.api.requests import JSONRoute, Services, ServicesOf
from queueserve.api.response import Answer, InputTokens, WholeResponse
from queueserve.api.routes.generate import identify
from queueserve.api.routes.stored import owner_of, shown
from queueserve.api.schemas.chat import ChatCompletionRequest
from queueserve.api.schemas.responses import ENCRYPTED, LOGPROBS, ResponsesRequest
from queueserve.api.stored import Earlier, Frame
from queueserve.api.tools import parsing_of
from queueserve.api.translate_responses import head_of, input_items, to_chat
from queueserve.api.truncation import truncated
from queueserve.errors import IdempotencyConflictError, InvalidRequestError, QueueServeError
from queueserve.protocol import Inputs, Job, ModelCard

router = APIRouter(route_class=JSONRoute)

_MARGIN = 60  # seconds that a background response may take longer than its job


@router.post("/responses", response_class=Response)
async def create_response(
    body: ResponsesRequest, request: Request, services: ServicesOf
) -> Response:
    """Answer with the next items of a conversation."""
    owner = owner_of(request)
    if (body.store or body.background) and not services.responses.store.enabled:
        raise InvalidRequestError("This server stores no responses.", param="store")
    identity = await identify("resp_", body, request, services)
    if body.background and (retried := await _retried(body, owner, identity, services)):
        return retried
    earlier = await services.responses.earlier(owner, body.previous_response_id)
    chat = to_chat(body, earlier.items)
    card = await services.model(body.model, "chat")
    if body.truncation == "auto":
        chat = await _truncated(chat, identity, card, services)
    (job,) = chat_jobs(chat, identity, card, services.settings)
    parser = parsing_of(chat, card, job.constraint).parser()
    answer = Answer(
        _head(body, identity, services),
        parser,
        logprobs=body.includes(LOGPROBS),
        encrypted=body.includes(ENCRYPTED),
    )
    frame = _frame(body, identity, owner, earlier)
    if body.background:
        return await _background(body, job, answer, frame, identity, services)
    return _answer(body, job, answer, _keeping(answer, frame, services), services)


@router.post("/responses/input_tokens", response_class=Response)
async def count_input_tokens(
    body: ResponsesRequest, request: Request, services: ServicesOf
) -> Response:
    """Tell how many tokens the prompt of such a request has, in the model's chat template."""
    earlier = await services.responses.earlier(owner_of(request), body.previous_response_id)
    card = await services.model(body.model, "chat")
    identity = await identify("tok-", body, request, services)
    job = _counting(to_chat(body, earlier.items), identity, card, services)
    return DataAnswer(services.owner, [job], InputTokens())


def _counting(
    chat: ChatCompletionRequest, identity: Identity, card: ModelCard, services: Services
) -> Job:
    """Return the job that counts the tokens of a prompt."""
    (job,) = chat_jobs(chat, identity, card, services.settings)
    return replace(job, kind="tokenize", constraint=None, inputs=Inputs())


async def _truncated(
    chat: ChatCompletionRequest, identity: Identity, card: ModelCard, services: Services
) -> ChatCompletionRequest:
    async def count(shorter: ChatCompletionRequest) -> int:
        fresh = Identity.fresh("tok-", tenant=identity.tenant)
        counted = InputTokens()
        await run_all(services.owner, [_counting(shorter, fresh, card, services)], counted)
        return counted.tokens

    return await truncated(chat, count, context_length=card.context_length)


def _answer(
    body: ResponsesRequest, job: Job, answer: Answer, keep: Keep, services: Services
) -> Response:
    if not body.stream:
        return WholeAnswer(services.owner, [job], WholeResponse(answer), keep=keep)
    return StreamAnswer(
        services.owner,
        [job],
        ResponseEvents(answer),
        keep_alive=services.settings.keep_alive,
        tells_position=bool(body.stream_options and body.stream_options.include_queue_position),
        keep=keep,
    )


def _keeping(answer: Answer, frame: Frame, services: Services) -> Keep:
    async def keep(error: QueueServeError | None) -> None:
        if answer.stored:
            response = answer.response("failed" if error else None, error)
            answer.stored = await services.responses.keep(frame.owner, frame.around(response))

    return keep


async def _background(  # noqa: PLR0917 - what a response is made of
    body: ResponsesRequest,
    job: Job,
    answer: Answer,
    frame: Frame,
    identity: Identity,
    services: Services,
) -> Response:
    """Begin a response that goes on by itself, and show it or its stream."""
    end_by = int(time.time() + job.queue_timeout + job.timeout + _MARGIN)
    stored = frame.around(answer.response("queued"), pool=job.pool, job=job.id, end_by=end_by)
    while not await services.background.start(Work(frame.owner, stored, job, answer)):
        if retried := await _retried(body, frame.owner, identity, services):
            return retried  # else the job of the one before could not be opened
    return shown(stored, frame.owner, services, after=-1 if body.stream else None)


async def _retried(
    body: ResponsesRequest, owner: str, identity: Identity, services: Services
) -> Response | None:
    """Return what an earlier request with the same Idempotency-Key has begun."""
    if not identity.digest:
        return None
    stored = await services.responses.opened(owner, identity.reply_id)
    if stored is None:
        return None
    if stored.digest != identity.digest:
        raise IdempotencyConflictError("This Idempotency-Key was used with another request body.")
    return shown(stored, owner, services, after=-1 if body.stream else None)


def _head(body: ResponsesRequest, identity: Identity, services: Services) -> dict[str, object]:
    store = services.responses.store.enabled and body.store is not False
    return head_of(body, reply_id=identity.reply_id, created=int(time.time()), store=store)


def _frame(body: ResponsesRequest, identity: Identity, owner: str, earlier: Earlier) -> Frame:
    items = input_items(body, identity.reply_id)
    return Frame(owner, identity.reply_id, items, earlier.chain, identity.digest)
