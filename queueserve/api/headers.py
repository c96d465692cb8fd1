"""The headers that every answer carries."""

from __future__ import annotations

import os
import re
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from queueserve.api.errors_anthropic import is_anthropic

_SANE_ID = re.compile(r"[A-Za-z0-9_.:/+=-]{1,128}")


def new_request_id() -> str:
    """Return what a request is called whose client has no name for it."""
    return f"req_{os.urandom(16).hex()}"


def header(scope: Scope, name: bytes) -> str | None:
    """Return the first header of that name, in lower case, as Starlette's Headers finds it."""
    for given, value in scope["headers"]:
        if given == name:
            return str(value, "latin-1")
    return None


def _request_id(scope: Scope) -> str:
    """Return the client's x-request-id if it can be shown and logged as it is, else a new one."""
    given = header(scope, b"x-request-id")
    return given if given and _SANE_ID.fullmatch(given) else new_request_id()


class RequestHeaders:
    """Sets x-request-id and openai-processing-ms (until the answer begins).

    It is the outermost layer, so that whatever answers carries them. The request's state tells the
    layers inside its `request_id`, and whether it is `answered`: whether its answer has begun.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        request_id = _request_id(scope)
        state = scope.setdefault("state", {})
        state["request_id"], state["answered"] = request_id, False

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                state["answered"] = True
                elapsed = int((time.perf_counter() - began) * 1000)
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode()),
                    (b"openai-processing-ms", b"%d" % elapsed),
                ]
                if is_anthropic(scope["path"]):  # what Anthropic's clients call it
                    message["headers"].append((b"request-id", request_id.encode()))
            await send(message)

        await self._app(scope, receive, send_with_headers)
