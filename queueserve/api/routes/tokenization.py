"""POST /tokenize and /detokenize as vLLM has them, and FastChat's /api/v1/token_check."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from fastapi import APIRouter, Request, Response
from msgspec.structs import replace

from queueserve.api.conversation import carried
from queueserve.api.data import DataAnswer, batched, run_all
from queueserve.api.jobs import data_job
from queueserve.api.render_data import Rows, Text, Tokens
from queueserve.api.requests import JSONRoute, Services, ServicesOf
from queueserve.api.routes.generate import identify
from queueserve.api.schemas.data import ModelRequest
from queueserve.api.schemas.tokenization import (
    DetokenizeRequest,
    PromptToCheck,
    TokenCheckRequest,
    TokenizeRequest,
)
from queueserve.api.tools import Offer
from queueserve.protocol import Inputs, Job, JobKind, ModelCard

root = APIRouter(route_class=JSONRoute)


async def _job(
    kind: JobKind, body: ModelRequest, card: ModelCard, request: Request, services: Services
) -> Job:
    identity = await identify("tok-", body, request, services)
    return data_job(kind, body, identity, card, services.settings)


@root.post("/tokenize", response_class=Response)
async def tokenize(body: TokenizeRequest, request: Request, services: ServicesOf) -> Response:
    """Tell the token ids of a prompt, or of messages in the model's chat template."""
    card = await services.model(body.model, "tokenize" if body.messages is None else "chat")
    job = await _job("tokenize", body, card, request, services)
    if body.messages is None:
        special = body.add_special_tokens is not False
        job = replace(job, inputs=Inputs(items=(body.prompt or "",), add_special=special))
    else:
        job = replace(
            job,
            inputs=Inputs(),
            messages=carried(body.messages),
            tools=Offer([tool.function for tool in body.tools or ()]).tools,
            add_generation_prompt=body.add_generation_prompt is not False,
            template_kwargs=body.chat_template_kwargs or {},
            continue_final_message=bool(body.continue_final_message),
        )
    return DataAnswer(services.owner, [job], Tokens(context_length=card.context_length))


@root.post("/detokenize", response_class=Response)
async def detokenize(body: DetokenizeRequest, request: Request, services: ServicesOf) -> Response:
    """Tell the text of token ids; special tokens have none."""
    card = await services.model(body.model, "detokenize")
    job = await _job("detokenize", body, card, request, services)
    job = replace(job, inputs=Inputs(items=(tuple(body.tokens),), param="tokens"))
    return DataAnswer(services.owner, [job], Text())


@root.post("/api/v1/token_check")
async def token_check(
    body: TokenCheckRequest, request: Request, services: ServicesOf
) -> dict[str, Any]:
    """Tell whether prompts and their answers fit their models' contexts."""
    by_model = defaultdict[str, list[int]](list)
    for index, prompt in enumerate(body.prompts):
        by_model[prompt.model].append(index)
    limits, jobs = dict[str, int](), list[Job]()
    for model, indices in by_model.items():
        card = await services.model(model, "tokenize")
        limits[model] = card.context_length
        prompts = [body.prompts[index] for index in indices]
        job = await _job("tokenize", prompts[0], card, request, services)
        inputs = Inputs(items=tuple(prompt.prompt for prompt in prompts))
        jobs += batched(replace(job, id=f"{job.id}-{len(jobs)}"), inputs)
    rows = Rows()
    await run_all(services.owner, jobs, rows)
    order = [index for indices in by_model.values() for index in indices]
    counts = dict(zip(order, map(len, rows.all), strict=True))
    checked = [
        _checked(prompt, counts[index], limits[prompt.model])
        for index, prompt in enumerate(body.prompts)
    ]
    return {"prompts": checked}


def _checked(prompt: PromptToCheck, count: int, limit: int) -> dict[str, Any]:
    fits = count + prompt.max_tokens <= limit
    return {"fits": fits, "tokenCount": count, "contextLength": limit}
