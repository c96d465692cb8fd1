"""POST /v1/rerank and /v1/score: how well texts match, by a cross-encoder or by vectors."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request, Response

from queueserve.api.data import DataAnswer, batched
from queueserve.api.jobs import data_job
from queueserve.api.render_data import Ranking, Scores
from queueserve.api.requests import JSONRoute, ServicesOf
from queueserve.api.routes.generate import identify
from queueserve.api.schemas.scoring import RerankRequest, ScoreRequest
from queueserve.protocol import Inputs

router = APIRouter(route_class=JSONRoute)
root = APIRouter(route_class=JSONRoute)
"""The same without /v1, or with Cohere's /v2, where clients have it so."""


@root.post("/rerank", response_class=Response)
@root.post("/v2/rerank", response_class=Response)
@router.post("/rerank", response_class=Response)
async def rerank(body: RerankRequest, request: Request, services: ServicesOf) -> Response:
    """Order documents by how well they match a query, the best first."""
    identity = await identify("rerank-", body, request, services)
    card = await services.model(body.model, "score")
    inputs = Inputs(
        items=tuple(body.texts),
        queries=(body.query,),
        param="documents",
        truncate=body.truncate_prompt_tokens,
    )
    jobs = batched(data_job("score", body, identity, card, services.settings), inputs)
    answers = Ranking(
        id=identity.reply_id,
        model=body.model,
        texts=body.texts,
        top=body.top_n or None,
        with_texts=body.return_documents is not False,
    )
    return DataAnswer(services.owner, jobs, answers)


@root.post("/score", response_class=Response)
@router.post("/score", response_class=Response)
async def score(body: ScoreRequest, request: Request, services: ServicesOf) -> Response:
    """Score pairs: the first text with each of the second ones, or text by text."""
    identity = await identify("score-", body, request, services)
    card = await services.model(body.model, "score")
    inputs = Inputs(
        items=tuple(body.texts),
        queries=tuple(body.queries),
        param="text_2",
        truncate=body.truncate_prompt_tokens,
    )
    jobs = batched(data_job("score", body, identity, card, services.settings), inputs)
    answers = Scores(id=identity.reply_id, model=body.model, created=int(time.time()))
    return DataAnswer(services.owner, jobs, answers)
