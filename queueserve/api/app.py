"""The API server as an ASGI application. Its lifespan owns every resource."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeAlias, TypedDict

from fastapi import APIRouter, FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from queueserve import __version__
from queueserve.api import auth, document, errors
from queueserve.api.background import Background
from queueserve.api.direct import Direct, Route
from queueserve.api.failures import Failures
from queueserve.api.headers import RequestHeaders
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
        app.ask_for_telemetry()
        async with (
            open_plane(settings) as plane,
            Background(plane.owner, plane.responses, grace=settings.shutdown_grace) as background,
        ):
            responses = Responses(plane.responses)
            services = Services(settings, plane.owner, plane.directory, responses, background)
            yield {"services": services}

    app = _App(
        wants_key=bool(settings.api_keys),
        title="QueueServe",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from elsewhere; /openapi.json is there
        redoc_url=None,
        redirect_slashes=False,
        middleware=_layers(settings),
    )
    app.include_router(_v1())
    for router in (health.router, scoring.root, tokenization.root):
        app.include_router(router)
    errors.install(app)
    return app


class _App(FastAPI):
    """FastAPI's application; requests for the direct routes go past it, inside the same layers.

    Its /openapi.json tells the whole truth.
    """

    def __init__(self, *, wants_key: bool, middleware: Sequence[Middleware], **more: Any) -> None:
        super().__init__(middleware=middleware, **more)
        self._wants_key = wants_key
        self._traced = False
        self._direct = Direct(_DIRECT)
        self._short: ASGIApp = self._direct
        for layer in reversed(middleware):
            self._short = layer.cls(self._short, *layer.args, **layer.kwargs)

    def ask_for_telemetry(self) -> None:
        """See whether OpenTelemetry is set up: then all goes FastAPI's way, which knows how."""
        own = getattr(self, "_native_telemetry", None)  # vLLM wants a FastAPI without it
        added = getattr(self, "_is_instrumented_by_opentelemetry", False)  # what its package says
        self._traced = added or (own is not None and own.enabled())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        short = self._direct.takes(scope) and not self._traced
        await (self._short if short else super().__call__)(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        """Return the document; made once."""
        if self.openapi_schema is None:
            self.openapi_schema = super().openapi()
            document.complete(self.openapi_schema, keys=self._wants_key)
        return self.openapi_schema


def _layers(settings: ApiSettings) -> list[Middleware]:
    """Return the layers around all routes, from the outermost in."""
    layers = [Middleware(RequestHeaders)]
    if settings.cors.origins:  # outside of keys: a browser asks first, without one
        cors = Middleware(
            CORSMiddleware,
            allow_origins=settings.cors.origins,
            allow_methods=settings.cors.methods,
            allow_headers=settings.cors.headers,
            allow_credentials=settings.cors.credentials,
            expose_headers=_EXPOSED,
        )
        layers.append(cors)
    layers.append(Middleware(Failures))
    if settings.api_keys:
        layers.append(Middleware(auth.Authentication, keys=auth.ApiKeys(settings.api_keys)))
    return layers


def _v1() -> APIRouter:
    """Return everything under /v1: what must hold for all of it is said here, once."""
    router = APIRouter(prefix="/v1")
    for routes in (chat, completions, embeddings, messages, models, responses, scoring, stored):
        router.include_router(routes.router)
    return router
