"""The domain errors: one tree, raised anywhere, turned into HTTP in `queueserve.api.errors` only.

An error crosses Redis as (code, message, param); `from_code` builds it again on the other side.
"""

from __future__ import annotations

from typing import ClassVar


class QueueServeError(Exception):
    """Something the caller can be told about.

    `code` is stable and goes to the client; `param` names the request field at fault, if one is.
    """

    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidRequestError(QueueServeError):
    """The request cannot be served as it is; sending it again will not help."""

    code = "invalid_value"


class ContextLengthExceededError(InvalidRequestError):
    """The prompt, or the prompt and the tokens asked for, do not fit the model's context."""

    code = "context_length_exceeded"


class ModelNotFoundError(QueueServeError):
    """No worker has ever registered this model name, or not for a long time."""

    code = "model_not_found"


class ResponseNotFoundError(QueueServeError):
    """No response of this id is stored, or it is another tenant's."""

    code = "response_not_found"


class IdempotencyConflictError(QueueServeError):
    """The Idempotency-Key was used with another body."""

    code = "idempotency_conflict"


class QueueFullError(QueueServeError):
    """The model's queue, or the tenant's part of it, is at its bound."""

    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after: float = 1.0, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.retry_after = retry_after  # seconds


class NoWorkerError(QueueServeError):
    """The model is known, but no worker for it was there within the queue timeout."""

    code = "no_worker"


class QueueTimeoutError(QueueServeError):
    """The job waited for a slot until its queue deadline."""

    code = "queue_timeout"


class RequestTimeoutError(QueueServeError):
    """The job did not end before its total deadline."""

    code = "request_timeout"


class CancelledJobError(QueueServeError):
    """The job was cancelled: by its client, or by an operator."""

    code = "cancelled"


class WorkerLostError(QueueServeError):
    """The job's worker was lost, and it could not be continued on another one."""

    code = "worker_lost"


class PoisonJobError(QueueServeError):
    """The job has ended worker after worker, the last one while it ran alone."""

    code = "worker_crashed"


class EngineError(QueueServeError):
    """The engine failed while it ran the job."""

    code = "engine_error"


class RedisUnavailableError(QueueServeError):
    """Redis does not answer within the bound; nothing was lost that had been acknowledged."""

    code = "redis_unavailable"


class RedisConfigurationError(QueueServeError):
    """Redis, or the way we are told to reach it, cannot do; to wait for it would not help."""

    code = "redis_configuration"


class ServerExpiredError(QueueServeError):
    """The API server could not renew its registration in time, so its jobs were cancelled."""

    code = "server_expired"


class ProtocolError(QueueServeError):
    """A message that is not ours, or from a version that is too far away; it is skipped."""

    code = "protocol_error"


def _subclasses(root: type[QueueServeError]) -> list[type[QueueServeError]]:
    return [root, *(deep for child in root.__subclasses__() for deep in _subclasses(child))]


def from_code(code: str, message: str, param: str | None = None) -> QueueServeError:
    """The error that `code` stands for; an unknown code gives the root of the tree."""
    for kind in _subclasses(QueueServeError):
        if kind.code == code:
            return kind(message, param=param)
    return QueueServeError(message, param=param)
