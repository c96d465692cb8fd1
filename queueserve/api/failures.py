"""The answer when all else fails."""

from __future__ import annotations

import logging

from starlette.types import ASGIApp, Receive, Scope, Send

from queueserve.api.errors import error_response

log = logging.getLogger(__name__)


class Failures:
    """Logs what no handler has caught, and answers 500.

    It lies inside of the layers that add headers: this answer needs them like any other, as a
    browser shows a page no answer that lacks those of CORS.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        except Exception:
            state = scope["state"]
            log.exception("request %s failed", state["request_id"])
            if state["answered"]:
                raise  # the server closes the connection: nothing true can be said any more
            failure = error_response(500, "The server failed.", code="internal_error")
            await failure(scope, receive, send)
