"""API keys: who may ask, and whose turn a request takes in the queue.

A layer around all routes, not a dependency of each: a route cannot be added without it, and those
that stream do not pay for FastAPI's dependency machinery.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from queueserve.api.errors import error_response

OPEN_PATHS = frozenset({"/health", "/ready"})
"""What a load balancer or an orchestrator asks, which has no key."""

_NO_KEY = (
    "This server wants an API key, as `Authorization: Bearer KEY` (or `x-api-key: KEY`); "
    "there is none in the request."
)
_WRONG_KEY = "The API key of the request is not one of this server's."


class ApiKeys:
    """The keys of a server. Only their digests are kept, so they cannot be logged by accident."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def tenant(self, key: str) -> str | None:
        """Return whose key it is: a name that is safe to show; None for an unknown key.

        Takes as long for a wrong key as for a right one: every digest is compared, and the time of
        a comparison does not depend on what is compared.
        """
        given = hashlib.sha256(key.encode()).digest()
        known = [hmac.compare_digest(given, digest) for digest in self._digests]
        return f"key-{given.hex()[:8]}" if any(known) else None


def presented(headers: Headers) -> str | None:
    """Return the key of a request: a bearer token, or Anthropic's `x-api-key`."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return headers.get("x-api-key") or None


class Authentication:
    """Answers 401 to a request without a known key, on every path but OPEN_PATHS.

    Leaves the key's tenant in the request's state, as `tenant`.
    """

    def __init__(self, app: ASGIApp, *, keys: ApiKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        key = presented(Headers(scope=scope))
        tenant = self._keys.tenant(key) if key else None
        if tenant is None:
            refusal = error_response(
                401,
                _WRONG_KEY if key else _NO_KEY,
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
            await refusal(scope, receive, send)
            return
        scope["state"]["tenant"] = tenant
        await self._app(scope, receive, send)
