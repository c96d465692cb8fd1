"""Errors become HTTP here and nowhere else: OpenAI's shape, all four keys, always.

    {"error": {"message": str, "type": str, "param": str | null, "code": str | null}}

`type` is invalid_request_error for what the client must change, rate_limit_error for what it must
do later, server_error for the rest. `code` is stable. A failure that shows after the answer has
begun is the same object as an event of the stream (`sse.error_frame`). Paths whose clients expect
Anthropic's shape get that (`errors_anthropic`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from queueserve.api import errors_anthropic
from queueserve.errors import PoisonJobError, QueueFullError, QueueServeError

log = logging.getLogger(__name__)

_MAX_RETRY_AFTER = 120.0  # seconds; the openai client gives up above it
_SOON = 1.0
_LATER = 5.0

_STATUS: Mapping[str, int] = {
    "cancelled": 409,
    "context_length_exceeded": 400,
    "idempotency_conflict": 409,
    "invalid_value": 400,
    "model_not_found": 404,
    "no_worker": 503,
    "queue_timeout": 503,
    "rate_limit_exceeded": 429,
    "redis_unavailable": 503,
    "request_timeout": 504,
    "response_not_found": 404,
    "server_closing": 503,
    "server_expired": 503,
    "worker_lost": 503,
}
"""By `QueueServeError.code`; 500 for all others."""

_RETRY_AFTER: Mapping[str, float] = {
    "no_worker": _LATER,
    "queue_timeout": _LATER,
    "redis_unavailable": _SOON,
    "server_closing": _SOON,
    "server_expired": _SOON,
    "worker_lost": _SOON,
}

_PARAMS: Mapping[str, Mapping[str | None, str]] = {
    "/v1/responses": {
        "messages": "input",
        "response_format": "text",
        "logprobs": "include",
    },
}
"""By path, what fields that jobs know are called there."""

_HTTP_CODES: Mapping[int, str] = {
    404: "unknown_url",
    405: "method_not_allowed",
    413: "request_too_large",
}


def _type_of(status: int) -> str:
    if status == 429:  # noqa: PLR2004 - HTTP's own number
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"  # noqa: PLR2004


def error_body(status: int, message: str, *, code: str | None, param: str | None = None) -> bytes:
    """Return the JSON object of an error."""
    error = {"message": message, "type": _type_of(status), "param": param, "code": code}
    return orjson.dumps({"error": error})


class _ErrorResponse(Response):
    """Takes the shape that its path's clients expect when it is sent.

    So whoever makes one, a layer around all routes, say, need not know the path.
    """

    def __init__(
        self, status: int, message: str, body: bytes, headers: Mapping[str, str] | None
    ) -> None:
        super().__init__(body, status, headers, media_type="application/json")
        self._message = message
        self._extra = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        if not errors_anthropic.is_anthropic(scope["path"]):
            await super().__call__(scope, receive, send)
            return
        body = errors_anthropic.error_body(
            self.status_code, self._message, request_id=scope["state"].get("request_id")
        )
        response = Response(body, self.status_code, self._extra, media_type="application/json")
        await response(scope, receive, send)


def error_response(
    status: int,
    message: str,
    *,
    code: str | None,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return an answer that says what is wrong."""
    body = error_body(status, message, code=code, param=param)
    return _ErrorResponse(status, message, body, headers)


def status_of(error: QueueServeError) -> int:
    """Return the HTTP status of a domain error."""
    return _STATUS.get(error.code, 500)


def domain_error_body(error: QueueServeError) -> bytes:
    """Return the JSON object of a domain error, for a stream that has begun."""
    status = status_of(error)
    return error_body(status, error.message, code=error.code, param=error.param)


def log_failure(request_id: str, error: QueueServeError) -> None:
    """Log what has ended a request, under the id that its client has, unless the client did it."""
    if status_of(error) >= 500:  # noqa: PLR2004 - HTTP's own number
        log.warning("request %s: %s", request_id, error.message)


def _retry_headers(error: QueueServeError, status: int) -> dict[str, str]:
    if status == 409 or isinstance(error, PoisonJobError):  # noqa: PLR2004 - HTTP's own number
        # The openai client would send the same again; a poison job would end as many workers again.
        return {"x-should-retry": "false"}
    after = _RETRY_AFTER.get(error.code)
    if isinstance(error, QueueFullError):
        after = error.retry_after
    if after is None:
        return {}
    after = min(max(after, 0.0), _MAX_RETRY_AFTER)
    return {"retry-after": str(max(1, math.ceil(after))), "retry-after-ms": str(int(after * 1000))}


def domain_error_response(error: QueueServeError) -> Response:
    """Return the answer for a domain error."""
    status = status_of(error)
    headers = _retry_headers(error, status)
    return error_response(
        status, error.message, code=error.code, param=error.param, headers=headers
    )


def _param(loc: Sequence[int | str], body: Any) -> tuple[str, int]:
    """Return where in the body an error is, like `messages[0].content`, and how deep that is.

    `loc` also names the branches of unions; what is not there in the body is no part of the path.
    """
    path, depth = "", 0
    for part in loc:
        if isinstance(body, list) and isinstance(part, int) and part < len(body):
            path, body = f"{path}[{part}]", body[part]
        elif isinstance(body, dict) and part in body:
            path, body = f"{path}.{part}", body[part]
        else:
            continue
        depth += 1
    return path.removeprefix("."), depth


def _code_of(kind: str) -> str:
    if kind == "missing":
        return "missing_required_parameter"
    if kind.endswith(("_type", "_parsing")):
        return "invalid_type"
    if kind == "unsupported_value":
        return kind
    return "invalid_value"


def _invalid(errors: Sequence[Any], body: Any) -> Response:
    """Answer with the most telling error.

    Every branch of a union has one. The branch that was meant complains of a value, not of a type,
    or lies deepest.
    """
    located = [(_param(error["loc"][1:], body), error) for error in errors]
    (param, _), error = max(
        located, key=lambda entry: (_code_of(entry[1]["type"]) != "invalid_type", entry[0][1])
    )
    if error["type"] == "missing":
        param = f"{param}.{error['loc'][-1]}".removeprefix(".")
    message = f"{param}: {error['msg']}" if param else error["msg"]
    return error_response(400, message, code=_code_of(error["type"]), param=param or None)


async def _on_validation_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - what it is registered for
    errors = error.errors()
    first = errors[0]
    if first["loc"][0] != "body":  # but the path, the query or a header, which come first
        name = str(first["loc"][1])
        return error_response(
            400, f"{name}: {first['msg']}", code=_code_of(first["type"]), param=name
        )
    if first["type"] == "json_invalid":
        reason = f"{first['ctx']['error']}, at character {first['loc'][-1]}"
        return error_response(400, f"The body is not valid JSON: {reason}.", code="invalid_json")
    if isinstance(error.body, bytes):  # FastAPI leaves what is not declared as JSON unread
        message = "The body must be JSON, with the header Content-Type: application/json."
        return error_response(400, message, code="unsupported_content_type")
    if error.body is None:
        return error_response(400, "The body is missing.", code="missing_body")
    return _invalid(errors, error.body)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - what it is registered for
    message = error.detail
    if error.status_code in (404, 405):
        message = f"{error.detail}: {request.method} {request.url.path}"
    code = _HTTP_CODES.get(error.status_code)
    return error_response(error.status_code, message, code=code, headers=error.headers)


async def _on_domain_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, QueueServeError)  # noqa: S101 - what it is registered for
    names = _PARAMS.get(request.url.path, {})
    error.param = names.get(error.param, error.param)
    log_failure(request.state.request_id, error)
    return domain_error_response(error)


_HANDLERS = {
    QueueServeError: _on_domain_error,
    RequestValidationError: _on_validation_error,
    HTTPException: _on_http_exception,
}


def install(app: FastAPI) -> None:
    """Register the handlers of all errors that a route may raise."""
    for kind, handle in _HANDLERS.items():
        app.add_exception_handler(kind, handle)


async def answer_to(request: Request, error: Exception) -> Response | None:
    """Return the answer to what a route has raised; None for what is no error of these kinds."""
    for kind, handle in _HANDLERS.items():
        if isinstance(error, kind):
            return await handle(request, error)
    return None
