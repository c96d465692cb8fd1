"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from queueserve.api.requests import ServicesOf
from queueserve.protocol import ModelCard

router = APIRouter()


def _model(card: ModelCard) -> dict[str, Any]:
    return {
        "id": card.name,
        "object": "model",
        "created": card.created,
        "owned_by": "queueserve",
        "root": card.pool,
        "parent": None if card.name == card.pool else card.pool,  # of an alias
        "max_model_len": card.context_length,
        "capabilities": [*card.tasks, *(["images"] if card.images else [])],
        "engine": card.engine,
    }


@router.get("/models")
async def list_models(services: ServicesOf) -> dict[str, Any]:
    """List the models that a live worker serves."""
    cards = await services.directory.list()
    return {"object": "list", "data": [_model(card) for card in cards]}


@router.get("/models/{model:path}")  # a name may have a slash in it, as on the hub
async def retrieve_model(model: str, services: ServicesOf) -> dict[str, Any]:
    """Describe one model; one whose workers are away for a moment is still known."""
    return _model(await services.directory.find(model))
