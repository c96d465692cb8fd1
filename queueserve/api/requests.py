"""What a route gets of its request: the body, read by orjson, and the services."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import orjson
from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from queueserve.api.background import Background
from queueserve.api.headers import header
from queueserve.api.readiness import Readiness
from queueserve.api.stored import Responses
from queueserve.errors import InvalidRequestError
from queueserve.protocol import JobKind, ModelCard
from queueserve.queue.directory import Directory
from queueserve.queue.owner import Owner
from queueserve.settings import ApiSettings


class JSONRequest(Request):
    """A request whose body is read at once, within the server's bound, and parsed by orjson."""

    async def body(self) -> bytes:
        """Return the body. Raises ClientDisconnect, and HTTPException for one that is too large."""
        if not hasattr(self, "_body"):
            limit = self.scope["state"]["services"].settings.max_body_bytes
            self._body = await _read(self.scope, self._receive, limit)
        body: bytes = self._body
        return body

    async def json(self) -> Any:
        """Return the body. Raises orjson.JSONDecodeError, which FastAPI knows by its base class."""
        if not hasattr(self, "_json"):
            self._json = orjson.loads(await self.body())
        return self._json


async def _read(scope: Scope, receive: Receive, limit: int) -> bytes:
    declared = header(scope, b"content-length") or ""
    if declared.isdigit() and int(declared) > limit:  # believed at once
        raise _too_large(limit)
    received, parts = 0, []
    while (message := await receive())["type"] == "http.request":
        parts.append(message.get("body", b""))
        received += len(parts[-1])
        if received > limit:  # whatever was declared
            raise _too_large(limit)
        if not message.get("more_body", False):
            return b"".join(parts)
    raise ClientDisconnect


def _too_large(limit: int) -> HTTPException:
    return HTTPException(413, f"The body is larger than {limit} bytes.")


class JSONRoute(APIRoute):
    """A route whose body orjson reads: several times faster, and it refuses NaN and bad UTF-8.

    Every route with a body is one: the bound on bodies is a JSONRequest's.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap FastAPI's handler."""
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            return await handle(JSONRequest(request.scope, request.receive))

        return handle_json


_ENDPOINTS: Mapping[JobKind, str] = {
    "chat": "/v1/chat/completions",
    "completion": "/v1/completions",
    "embed": "/v1/embeddings",
    "score": "/v1/rerank and /v1/score",
    "tokenize": "/tokenize",
    "detokenize": "/detokenize",
}


@dataclass(frozen=True, slots=True)
class Services:
    """What the lifespan has opened."""

    settings: ApiSettings
    owner: Owner
    directory: Directory
    responses: Responses
    background: Background
    readiness: Readiness = field(default_factory=Readiness)

    async def model(self, name: str, task: JobKind) -> ModelCard:
        """The card of a model that takes such jobs.

        Raises ModelNotFoundError, InvalidRequestError for a model of another kind,
        RedisUnavailableError.
        """
        card = await self.directory.find(name)
        if task not in card.tasks:
            there = dict.fromkeys(_ENDPOINTS[kind] for kind in card.tasks)
            raise InvalidRequestError(
                f"The model {name!r} is not one for {_ENDPOINTS[task]}: it answers "
                f"{', '.join(there)}.",
                param="model",
            )
        return card


async def _services(request: Request) -> Services:
    services: Services = request.state.services
    return services


ServicesOf = Annotated[Services, Depends(_services)]
