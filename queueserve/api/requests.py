"""What a route gets of its request: the body, read by orjson, and the services."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any

import orjson
from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute

from queueserve.queue.directory import Directory
from queueserve.queue.owner import Owner
from queueserve.settings import ApiSettings


class _Request(Request):
    async def json(self) -> Any:
        """Return the body. Raises orjson.JSONDecodeError, which FastAPI knows by its base class."""
        if not hasattr(self, "_json"):
            self._json = orjson.loads(await self.body())
        return self._json


class JSONRoute(APIRoute):
    """A route whose body orjson reads: several times faster, and it refuses NaN and bad UTF-8."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap FastAPI's handler."""
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            return await handle(_Request(request.scope, request.receive))

        return handle_json


@dataclass(frozen=True, slots=True)
class Services:
    """What the lifespan has opened."""

    settings: ApiSettings
    owner: Owner
    directory: Directory


async def _services(request: Request) -> Services:
    services: Services = request.state.services
    return services


ServicesOf = Annotated[Services, Depends(_services)]
