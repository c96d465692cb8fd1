"""How what crosses a process is written: as JSON that reads well in redis-cli.

A `Job` is one JSON object. `Event`s come over the API server's reply channel; one message is a JSON
array of events, and an event is an array that starts with its kind, so that `redis-cli SUBSCRIBE`
reads well and a token costs few bytes.

    ["started",  job, epoch, seq, prompt_tokens, cached_tokens, prompt_hash, fingerprint, worker,
                 prompt | null]
    ["delta",    job, epoch, seq, pos, text, [token, ...], [logprob, ...] | null]
    ["progress", job, epoch, seq, pos]
    ["finished", job, epoch, seq, pos, text, finish_reason, stop | null, prompt_tokens | null]
    ["answered", job, epoch, [row, ...], prompt_tokens]
    ["failed",   job, epoch, code, message, param | null]
    ["orphaned", job, epoch]

Members that are not known, of a newer version, are passed over.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeVar

from msgspec import DecodeError
from msgspec.json import Decoder, Encoder

from queueserve.errors import ProtocolError
from queueserve.protocol import Answer, Continuation, Event, Failure, Job, ModelCard, Result

_Data = TypeVar("_Data")

MAX_MESSAGE: Final = 64 * 1024 * 1024
"""Bytes of the largest message; a step of many long events stays far below."""

MAX_CARD: Final = 64 * 1024
"""Bytes of the largest model card: names and a few numbers."""

_ENCODER = Encoder()
_EVENTS = Decoder(list[Event])
_JOB = Decoder(Job)
_CONTINUATION = Decoder(Continuation)
_RESULT = Decoder(Result)
_ANSWER = Decoder(Answer)
_FAILURE = Decoder(Failure)
_CARD = Decoder(ModelCard)


def encode_events(events: Iterable[Event]) -> bytes:
    """One message for one reply channel."""
    return _ENCODER.encode(list(events))


def encode(value: Job | Continuation | Result | Answer | Failure | ModelCard) -> bytes:
    """JSON of all that is not an event."""
    return _ENCODER.encode(value)


def decode_events(message: bytes) -> list[Event]:
    """The events of one message. Raises ProtocolError for anything that is not such a message."""
    return _decoded(_EVENTS, message, "a message of events")


def decode_job(body: bytes) -> Job:
    """The job in `body`. Raises ProtocolError."""
    return _decoded(_JOB, body, "a job")


def decode_continuation(body: bytes) -> Continuation:
    """The continuation in `body`. Raises ProtocolError."""
    return _decoded(_CONTINUATION, body, "a continuation")


def decode_result(body: bytes) -> Result:
    """The output of a job that generates. Raises ProtocolError."""
    return _decoded(_RESULT, body, "a result")


def decode_answer(body: bytes) -> Answer:
    """The output of a job that answers with data. Raises ProtocolError."""
    return _decoded(_ANSWER, body, "an answer")


def decode_failure(body: bytes) -> Failure:
    """Why a job has no output. Raises ProtocolError."""
    return _decoded(_FAILURE, body, "a failure")


def decode_card(body: bytes) -> ModelCard:
    """The model card in `body`. Raises ProtocolError."""
    return _decoded(_CARD, body, "a model card", MAX_CARD)


def _decoded(decoder: Decoder[_Data], data: bytes, what: str, most: int = MAX_MESSAGE) -> _Data:
    """Raises ProtocolError, also for more than is ever ours: to read it takes time."""
    if len(data) > most:
        raise ProtocolError(f"not {what}: {len(data)} bytes are too many")
    try:
        return decoder.decode(data)
    except (DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"not {what}: {error}") from error
