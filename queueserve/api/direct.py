"""The routes that generate, past FastAPI.

It takes longer than all else that the edge does for a request. The routes are routes of its, too:
/openapi.json describes them, the functions are the same, and what is not a POST of JSON to one of
their paths takes the long way, and is refused there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import orjson
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from queueserve.api import errors
from queueserve.api.requests import JSONRequest, Services

Handle: TypeAlias = Callable[[Any, Request, Services], Awaitable[Response]]
"""A route's function: the body, the request, what the lifespan has opened."""

_JSON = b"application/json"


@dataclass(frozen=True, slots=True)
class Route:
    """What a POST to a path takes, and what answers it."""

    body: type[BaseModel]
    handle: Handle


class Direct:
    """An application that answers the `routes`, by path."""

    def __init__(self, routes: Mapping[str, Route]) -> None:
        self._routes = routes

    def takes(self, scope: Scope) -> bool:
        """Tell whether a request is for it."""
        if scope["type"] != "http" or scope["path"] not in self._routes:
            return False
        kinds = [value for name, value in scope["headers"] if name == b"content-type"]
        is_json = len(kinds) == 1 and kinds[0].partition(b";")[0] == _JSON
        return is_json and scope["method"] == "POST"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, one that it takes."""
        try:
            response = await _response(self._routes[scope["path"]], JSONRequest(scope, receive))
            await response(scope, receive, send)
        except ClientDisconnect:
            return
        except Exception as error:
            answer = await errors.answer_to(Request(scope), error)
            if answer is None:
                raise
            await answer(scope, receive, send)


async def _response(route: Route, request: Request) -> Response:
    # In a frame of its own: the request's body is not kept while its answer is sent.
    body = _checked(route.body, await request.body())
    return await route.handle(body, request, request.scope["state"]["services"])


def _checked(model: type[BaseModel], body: bytes) -> BaseModel:
    """Return the request in `body`. Raises RequestValidationError, as FastAPI does."""
    if not body:
        raise RequestValidationError([{"type": "missing", "loc": ("body",)}])
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        wrong = {"type": "json_invalid", "loc": ("body", error.pos), "ctx": {"error": error.msg}}
        raise RequestValidationError([wrong], body=error.doc) from error
    try:
        return model.model_validate(data, from_attributes=True)
    except ValidationError as error:
        found = error.errors(include_url=False)
        at = [{**one, "loc": ("body", *one["loc"])} for one in found]
        raise RequestValidationError(at, body=data) from error
