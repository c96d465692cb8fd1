"""How what crosses a process is written: as JSON that reads well in redis-cli.

A `Job` is one JSON object. `Event`s come over the API server's reply channel; one message is a JSON
array of events, and an event is an array that starts with its kind, so that `redis-cli SUBSCRIBE`
reads well and a token costs few bytes.

    ["started",  job, epoch, seq, prompt_tokens, cached_tokens, prompt_hash, fingerprint, worker,
                 prompt | null]
    ["delta",    job, epoch, seq, pos, text, [token, ...], [logprob, ...] | null]
    ["progress", job, epoch, seq, pos]
    ["finished", job, epoch, seq, pos, text, finish_reason, stop | null]
    ["answered", job, epoch, [row, ...], prompt_tokens]
    ["failed",   job, epoch, code, message, param | null]
    ["orphaned", job, epoch]
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from functools import cache
from typing import Any, TypeVar

import orjson

from queueserve.errors import ProtocolError
from queueserve.protocol import (
    Answered,
    Constraint,
    Continuation,
    Delta,
    Event,
    Failed,
    Finished,
    Inputs,
    Job,
    ModelCard,
    Orphaned,
    Progress,
    Prompt,
    Sampling,
    Started,
    TokenLogprob,
    make_delta,
)

_LOWEST = -9999.0  # stands for the logarithm of 0, as in OpenAI's answers

_KINDS: dict[str, type[Event]] = {
    "started": Started,
    "delta": Delta,
    "progress": Progress,
    "finished": Finished,
    "answered": Answered,
    "failed": Failed,
    "orphaned": Orphaned,
}
_TAGS = {kind: tag for tag, kind in _KINDS.items()}


def _row(event: Event) -> list[Any]:
    if isinstance(event, Delta):
        row: list[Any] = ["delta", *event]
        if event.logprobs:
            row[-1] = [*map(_logprob_row, event.logprobs)]
        return row
    row = [_TAGS[type(event)], *(getattr(event, part.name) for part in fields(event))]
    if isinstance(event, Started) and event.prompt is not None:
        row[-1] = _prompt_row(event.prompt)
    if isinstance(event, Finished) and event.prompt_tokens is None:
        row.pop()  # an older API server does not know it
    return row


def _texts(pieces: Iterable[bytes]) -> list[str]:
    return [piece.decode("latin-1") for piece in pieces]  # JSON has no bytes


def _bytes(texts: Iterable[str]) -> tuple[bytes, ...]:
    return tuple(text.encode("latin-1") for text in texts)


def _logprob_row(one: TokenLogprob) -> list[Any]:
    return [one.logprob, one.top, _texts(one.pieces)]


def _logprob(row: Sequence[Any]) -> TokenLogprob:
    own, top, *pieces = row
    likely = tuple((token, _finite(value)) for token, value in top)
    return TokenLogprob(_finite(own), likely, _bytes(*pieces or ((),)))


def _finite(value: float | None) -> float:
    return _LOWEST if value is None else value  # JSON has no infinity: it was written as null


def _prompt_row(prompt: Prompt) -> list[Any]:
    logprobs = prompt.logprobs and [one and _logprob_row(one) for one in prompt.logprobs]
    return [prompt.tokens, _texts(prompt.pieces), logprobs]


def _prompt(row: Sequence[Any] | None) -> Prompt | None:
    if row is None:
        return None
    tokens, pieces, logprobs = row
    told = logprobs and tuple(one and _logprob(one) for one in logprobs)
    return Prompt(tuple(tokens), _bytes(pieces), told)


def encode_events(events: Iterable[Event]) -> bytes:
    """One message for one reply channel."""
    return orjson.dumps([_row(event) for event in events])


_SHAPES: dict[str, tuple[Any, ...]] = {
    "started": (str, int, int, int, int, str, str, str),
    "progress": (str, int, int, int),
    "finished": (str, int, int, int, str, str, (str, type(None)), int),
    "answered": (str, int, list, int),
    "failed": (str, int, str, str, (str, type(None))),
    "orphaned": (str, int),
}


def _other(row: Sequence[Any]) -> Event:
    tag, *rest = row
    if not all(map(isinstance, rest, _SHAPES[tag])):
        raise TypeError(f"a field of {tag!r} has the wrong type")
    if tag == "started":
        *head, prompt = rest if len(rest) > len(_SHAPES[tag]) else (*rest, None)
        return Started(*[*head, _prompt(prompt)])
    if tag == "answered":
        job, epoch, rows, prompt_tokens = rest
        return Answered(job, epoch, tuple(rows), prompt_tokens)
    return _KINDS[tag](*rest)


def _delta(row: Sequence[Any]) -> Delta:
    _, job, epoch, seq, pos, text, tokens, logprobs = row
    # What orjson gives has exactly these types; asked for one by one, as it is once per token.
    numbers = type(epoch) is type(seq) is type(pos) is int
    if not (numbers and type(job) is type(text) is str and type(tokens) is list):
        raise TypeError("a field of 'delta' has the wrong type")
    likely = tuple(map(_logprob, logprobs)) if logprobs else None
    return make_delta((job, epoch, seq, pos, text, tuple(tokens), likely))


MAX_MESSAGE = 64 * 1024 * 1024
"""Bytes of the largest message; a step of many long events stays far below."""


MAX_CARD = 64 * 1024
"""Bytes of the largest model card: names and a few numbers."""


def _loads(data: bytes, most: int = MAX_MESSAGE) -> Any:
    """What JSON says. Raises ValueError, also for more than is ever ours: to parse takes time."""
    if len(data) > most:
        raise ValueError(f"{len(data)} bytes are too many")
    return orjson.loads(data)


def decode_events(message: bytes) -> list[Event]:
    """The events of one message. Raises ProtocolError for anything that is not such a message."""
    try:
        return [_delta(row) if row[0] == "delta" else _other(row) for row in _loads(message)]
    except (ValueError, TypeError, LookupError) as error:
        raise ProtocolError(f"not a message of events: {error}") from error


def encode(value: Job | Continuation | ModelCard) -> bytes:
    """JSON of a job, a continuation or a model card."""
    return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)


@cache
def _names(kind: Any) -> frozenset[str]:
    return frozenset(part.name for part in fields(kind))


def known_fields(kind: Any, data: dict[str, Any]) -> dict[str, Any]:
    """The fields of `data` that the dataclass `kind` has; lists, which JSON has, become tuples."""
    known = _names(kind)
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in data.items()
        if name in known  # a field from a newer version is not ours to refuse
    }


_PLAIN: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float)}
_Data = TypeVar("_Data")


def typed(data: _Data) -> _Data:
    """`data`, whose texts and numbers are such. Raises TypeError: JSON has no types of its own."""
    for name, told, kinds in _plain_fields(type(data)):  # type: ignore[arg-type]
        value = getattr(data, name)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise TypeError(f"{name} is {type(value).__name__}, not {told}")
    return data


@cache
def _plain_fields(kind: Any) -> tuple[tuple[str, str, tuple[type, ...]], ...]:
    found = ((part.name, str(part.type)) for part in fields(kind))
    return tuple((name, told, _PLAIN[told]) for name, told in found if told in _PLAIN)


def decode_job(body: bytes) -> Job:
    """The job in `body`. Raises ProtocolError."""
    try:
        data = known_fields(Job, _loads(body))
        sampling = known_fields(Sampling, data.pop("sampling"))
        bias = {int(token): float(by) for token, by in sampling.pop("logit_bias", {}).items()}
        if constraint := data.pop("constraint", None):
            data["constraint"] = Constraint(**known_fields(Constraint, constraint))
        if inputs := data.pop("inputs", None):
            data["inputs"] = _inputs(inputs)
        return typed(Job(**data, sampling=typed(Sampling(**sampling, logit_bias=bias))))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ProtocolError(f"not a job: {error}") from error


def _inputs(data: dict[str, Any]) -> Inputs:
    items = [tuple(item) if isinstance(item, list) else item for item in data.pop("items")]
    return Inputs(**known_fields(Inputs, data), items=tuple(items))


def decode_continuation(body: bytes) -> Continuation:
    """The continuation in `body`. Raises ProtocolError."""
    try:
        return typed(Continuation(**known_fields(Continuation, _loads(body))))
    except (ValueError, TypeError, AttributeError) as error:
        raise ProtocolError(f"not a continuation: {error}") from error


def decode_card(body: bytes) -> ModelCard:
    """The model card in `body`. Raises ProtocolError."""
    try:
        return typed(ModelCard(**known_fields(ModelCard, _loads(body, MAX_CARD))))
    except (ValueError, TypeError, AttributeError) as error:
        raise ProtocolError(f"not a model card: {error}") from error
