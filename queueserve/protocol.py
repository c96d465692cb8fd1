"""What crosses a process: frozen data and its encoding.

A `Job` goes from an API server through Redis to a worker as one JSON object. `Event`s come back
over the API server's reply channel; one message is a JSON array of events, and an event is an array
that starts with its kind, so that `redis-cli SUBSCRIBE` reads well and a token costs few bytes.

    ["started",  job, epoch, seq, prompt_tokens, cached_tokens, prompt_hash, fingerprint, worker,
                 prompt | null]
    ["delta",    job, epoch, seq, pos, text, [token, ...], [logprob, ...] | null]
    ["progress", job, epoch, seq, pos]
    ["finished", job, epoch, seq, pos, text, finish_reason, stop | null]
    ["answered", job, epoch, [row, ...], prompt_tokens]
    ["failed",   job, epoch, code, message, param | null]
    ["orphaned", job, epoch]

`seq` counts the job's output tokens and `pos` its output characters *before* this event; both go on
across workers, so an overlap can be trimmed and a gap is seen. `epoch` is the fence: it grows with
every dispatch, and what carries an older one is dropped. A job that answers with data, and not with
text, has no output before its end, which is one event, `answered`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache, partial
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

import orjson

from queueserve.errors import ProtocolError

FinishReason: TypeAlias = Literal["stop", "length"]
JobKind: TypeAlias = Literal["chat", "completion", "embed", "score", "tokenize", "detokenize"]
LIGHT_KINDS: frozenset[JobKind] = frozenset({"tokenize", "detokenize"})
"""Jobs that need the tokenizer and not the engine: they do not wait for a slot."""
ConstraintKind: TypeAlias = Literal["json_object", "json_schema", "regex", "choice", "grammar"]

_LOWEST = -9999.0  # stands for the logarithm of 0, as in OpenAI's answers
CLASSES = 16
"""Priority classes: 0 goes first, 15 last."""
DEFAULT_CLASS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn. The API server always sets `seed`, so a continuation can repeat it."""

    max_tokens: int | None = None  # None: as many as the context has room for
    min_tokens: int = 0
    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    min_p: float = 0.0  # 0: off
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0  # 1: off
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = (
        None  # alternatives per token; None: no logprobs, 0: the token's own only
    )
    prompt_logprobs: int | None = None  # the same for the prompt's tokens


@dataclass(frozen=True, slots=True)
class Constraint:
    """What the output must match; the engine allows only tokens that keep to it.

    `value` is the JSON text of a schema, a regular expression that the whole output matches, the
    JSON list of the texts to choose from, or a grammar (GBNF or EBNF); for "json_object" it is
    empty. `param` is the field of the request that it comes from: an error about it names that.
    """

    kind: ConstraintKind
    value: str = ""
    param: str = "response_format"


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """Where an interrupted job goes on: all that another worker needs to pick it up exactly."""

    tokens: tuple[int, ...]  # output tokens the API server has received
    chars: int  # output characters it has received: less than the tokens' text if some is held back
    prompt_hash: str
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a job that answers with data works on; its answer has a row for each item."""

    items: tuple[str | tuple[int, ...], ...] = ()  # texts or token ids
    queries: tuple[str, ...] = ()  # kind "score": one for all items, or one for each
    param: str = "input"  # the field of the request that the items come from
    first: int = 0  # the first item's index in it, for messages
    truncate: int | None = None  # tokens kept of an item; -1: the model's most; None: as the worker
    dimensions: int | None = None  # kind "embed": of a vector; None: all
    add_special: bool = True  # kind "tokenize": with the special tokens around a plain prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One sequence to generate, or one batch of inputs to answer with data.

    A request with n = 2, or with two prompts, is two jobs.
    """

    id: str
    pool: str  # the queue it waits in
    model: str  # the name the client asked for: an alias or an adapter of the pool's model
    kind: JobKind
    messages: tuple[Mapping[str, Any], ...] = ()  # kind "chat"
    prompt: str | tuple[int, ...] = ""  # kind "completion": text or token ids
    inputs: Inputs | None = None  # the kinds that answer with data; None for the others
    sampling: Sampling = field(default_factory=Sampling)
    unset: tuple[str, ...] = ()  # fields of `sampling` left open: the model's own default counts
    constraint: Constraint | None = None  # None: the output is free
    tools: tuple[Mapping[str, Any], ...] = ()  # shown to the chat template
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    continue_final_message: bool = False
    add_generation_prompt: bool = True  # False: the model may go on as whom it likes
    show_prompt: bool = False  # the started event tells what the prompt has become
    tenant: str = "default"
    priority: int = DEFAULT_CLASS
    cost: int = 1  # estimated tokens, for fair queueing
    queue_timeout: float = 60.0  # seconds until it must have been dispatched
    timeout: float = 600.0  # seconds until it must have ended
    grace: float = 0.0  # seconds it outlives its reader; for jobs that a retry may attach to
    request: str = ""  # digest of the body, if a retry may attach: it holds n, too


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The log-probability of the token drawn, and of the most likely ones, before any sampling."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # (token, logprob), most likely first
    pieces: tuple[bytes, ...] = ()  # of the token and of those in `top`; the worker adds them


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a prompt has become, for a reader that shows it (`Job.show_prompt`)."""

    tokens: tuple[int, ...]
    pieces: tuple[bytes, ...]  # one per token
    logprobs: tuple[TokenLogprob | None, ...] | None = None  # one per token; the first has none


@dataclass(frozen=True, slots=True)
class Started:
    """A worker has accepted the job: the prompt fits, tokens will follow."""

    job: str
    epoch: int
    seq: int
    prompt_tokens: int
    cached_tokens: int
    prompt_hash: str
    fingerprint: str
    worker: str
    prompt: Prompt | None = None


class Delta(NamedTuple):  # made and read once per token: half the time of a frozen dataclass
    """New output. `text` may be empty while a character or a stop string is incomplete."""

    job: str
    epoch: int
    seq: int
    pos: int
    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None = None


make_delta: Callable[[Iterable[Any]], Delta] = partial(tuple.__new__, Delta)
"""A Delta of its members in a tuple; its own constructor is a function around this."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Sent every second for each live job, so that a lost tail shows as a gap."""

    job: str
    epoch: int
    seq: int
    pos: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of the output; `text` is what was still held back. `seq` is the number of tokens."""

    job: str
    epoch: int
    seq: int
    pos: int
    text: str
    finish_reason: FinishReason
    stop: str | None = None  # the stop string that was hit, if one was
    prompt_tokens: int | None = None  # where only the end tells: Started said 0


@dataclass(frozen=True, slots=True)
class Answered:
    """The whole answer of a job that answers with data: a row for each item, in their order.

    A row is, by the job's kind: "embed": base64 of the vector as little-endian float32; "score": a
    number; "tokenize": a list of token ids; "detokenize": a text.
    """

    job: str
    epoch: int
    rows: tuple[Any, ...]
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The end without an answer, for the reason that `code` names (`queueserve.errors`)."""

    job: str
    epoch: int
    code: str
    message: str
    param: str | None = None


@dataclass(frozen=True, slots=True)
class Orphaned:
    """The job's worker is gone; the reader must resume the job under this epoch, or lose it."""

    job: str
    epoch: int


Event: TypeAlias = Started | Delta | Progress | Finished | Answered | Failed | Orphaned


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What a model name stands for, as `qs:{pool}:cards` keeps it."""

    name: str
    pool: str
    context_length: int
    engine: str
    tasks: tuple[JobKind, ...] = ("chat", "completion")  # the kinds of jobs it takes
    created: int = 0  # Unix seconds
    seen: int = 0  # Unix seconds, renewed by its workers
    tool_parser: str | None = None  # how it writes calls; None: it takes no tools
    reasoning_parser: str | None = None  # how it marks its reasoning; None: it does not


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


def _event(row: Sequence[Any]) -> Event:
    if row[0] == "delta":
        return _delta(row)
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


def decode_events(message: bytes) -> list[Event]:
    """The events of one message. Raises ProtocolError for anything that is not such a message."""
    try:
        if len(message) > MAX_MESSAGE:
            raise ValueError(f"{len(message)} bytes are too many")
        return [_event(row) for row in orjson.loads(message)]
    except (ValueError, TypeError, LookupError) as error:
        raise ProtocolError(f"not a message of events: {error}") from error


def encode(value: Job | Continuation | ModelCard) -> bytes:
    """JSON of a job, a continuation or a model card."""
    return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)


@cache
def _names(kind: Any) -> frozenset[str]:
    return frozenset(part.name for part in fields(kind))


def _tuples(kind: Any, data: dict[str, Any]) -> dict[str, Any]:
    # JSON has lists where we have tuples, and frozen data must stay hashable in its parts.
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
        data = _tuples(Job, orjson.loads(body))
        sampling = _tuples(Sampling, data.pop("sampling"))
        bias = {int(token): float(by) for token, by in sampling.pop("logit_bias", {}).items()}
        if constraint := data.pop("constraint", None):
            data["constraint"] = Constraint(**_tuples(Constraint, constraint))
        if inputs := data.pop("inputs", None):
            data["inputs"] = _inputs(inputs)
        return typed(Job(**data, sampling=typed(Sampling(**sampling, logit_bias=bias))))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ProtocolError(f"not a job: {error}") from error


def _inputs(data: dict[str, Any]) -> Inputs:
    items = [tuple(item) if isinstance(item, list) else item for item in data.pop("items")]
    return Inputs(**_tuples(Inputs, data), items=tuple(items))


def decode_continuation(body: bytes) -> Continuation:
    """The continuation in `body`. Raises ProtocolError."""
    try:
        return typed(Continuation(**_tuples(Continuation, orjson.loads(body))))
    except (ValueError, TypeError, AttributeError) as error:
        raise ProtocolError(f"not a continuation: {error}") from error


def decode_card(body: bytes) -> ModelCard:
    """The model card in `body`. Raises ProtocolError."""
    try:
        return typed(ModelCard(**_tuples(ModelCard, orjson.loads(body))))
    except (ValueError, TypeError, AttributeError) as error:
        raise ProtocolError(f"not a model card: {error}") from error
