"""The shape of errors under /v1/messages: Anthropic's.

{"type": "error", "error": {"type": str, "message": str}, "request_id": str | null}
"""

from __future__ import annotations

from collections.abc import Mapping

import orjson

_PATH = "/v1/messages"

_TYPES: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""By HTTP status; of the others, those below 500 are the request's fault."""


def is_anthropic(path: str) -> bool:
    """Tell whether clients of this path expect Anthropic's shapes."""
    return path == _PATH or path.startswith(f"{_PATH}/")


def error_body(status: int, message: str, *, request_id: str | None = None) -> bytes:
    """Return the JSON object of an error."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")  # noqa: PLR2004 - HTTP's own number
    error = {"type": kind, "message": message}
    return orjson.dumps({"type": "error", "error": error, "request_id": request_id})
