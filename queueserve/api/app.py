"""The API server as an ASGI application. Its lifespan owns every resource."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeAlias, TypedDict

from fastapi import APIRouter, FastAPI
from starlette.middleware.cors import CORSMiddleware

from queueserve import __version__
from queueserve.api import auth, document, errors
from queueserve.api.background import Background
from queueserve.api.direct import Direct, Route
from queueserve.api.failures import Failures
from queueserve.api.headers import RequestHeaders
from queueserve.api.limits import BodyLimit
from queueserve.api.requests import Services
from queueserve.api.routes import (
    chat,
    completions,
    embeddings,
    health,
    messages,
    models,
    responses,
    scoring,
    stored,
    tokenization,
)
from queueserve.api.schemas.chat import ChatCompletionRequest
from queueserve.api.schemas.completions import CompletionRequest
from queueserve.api.stored import Responses
from queueserve.queue.plane import ControlPlane, open_control_plane
from queueserve.queue.producer import Limits
from queueserve.settings import ApiSettings

_EXPOSED = (
    "x-request-id",
    "openai-processing-ms",
    "retry-after",
    "retry-after-ms",
    "x-queueserve-queue-position",
)
"""What a page of another origin may read of an answer's headers."""

_DIRECT = {
    "/v1/chat/completions": Route(ChatCompletionRequest, chat.create_chat_completion),
    "/v1/completions": Route(CompletionRequest, completions.create_completion),
}

OpenControlPlane: TypeAlias = Callable[[ApiSettings], AbstractAsyncContextManager[ControlPlane]]


class _State(TypedDict):
    services: Services


def control_plane(settings: ApiSettings) -> AbstractAsyncContextManager[ControlPlane]:
    """Open the control plane that the settings name."""
    return open_control_plane(
        settings.redis_url,
        prefix=settings.key_prefix,
        heartbeat_timeout=settings.heartbeat_timeout,
        limits=Limits(
            max_queue=settings.max_queue, max_queue_per_tenant=settings.max_queue_per_tenant
        ),
        response_ttl=settings.response_ttl,
        max_response_bytes=settings.max_response_bytes,
    )


def create_app(settings: ApiSettings, *, open_plane: OpenControlPlane = control_plane) -> FastAPI:
    """Return the application; nothing is opened before its lifespan begins."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[_State]:
        async with (
            open_plane(settings) as plane,
            Background(plane.owner, plane.responses, grace=settings.shutdown_grace) as background,
        ):
            responses = Responses(plane.responses)
            services = Services(settings, plane.owner, plane.directory, responses, background)
            yield {"services": services}

    app = _App(
        title="QueueServe",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from elsewhere; /openapi.json is there
        redoc_url=None,
        redirect_slashes=False,
    )
    app.include_router(_v1())
    for router in (health.router, scoring.root, tokenization.root):
        app.include_router(router)
    errors.install(app)
    _surround(app, settings)
    return app


class _App(FastAPI):
    """Its /openapi.json tells the whole truth."""

    wants_key = False

    def openapi(self) -> dict[str, Any]:
        """Return the document; made once."""
        if self.openapi_schema is None:
            self.openapi_schema = super().openapi()
            document.complete(self.openapi_schema, keys=self.wants_key)
        return self.openapi_schema


def _surround(app: _App, settings: ApiSettings) -> None:
    """Put the layers around all routes; the last one added is the outermost."""
    app.add_middleware(Direct, routes=_DIRECT)
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes)
    if settings.api_keys:
        app.wants_key = True
        app.add_middleware(auth.Authentication, keys=auth.ApiKeys(settings.api_keys))
    app.add_middleware(Failures)
    if settings.cors.origins:  # outside of keys: a browser asks first, without one
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors.origins,
            allow_methods=settings.cors.methods,
            allow_headers=settings.cors.headers,
            allow_credentials=settings.cors.credentials,
            expose_headers=_EXPOSED,
        )
    app.add_middleware(RequestHeaders)


def _v1() -> APIRouter:
    """Return everything under /v1: what must hold for all of it is said here, once."""
    router = APIRouter(prefix="/v1")
    for routes in (chat, completions, embeddings, messages, models, responses, scoring, stored):
        router.include_router(routes.router)
    return router
