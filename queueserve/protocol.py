"""What crosses a process, as frozen data; `queueserve.encoding` says how it is written.

Of a job only what differs from the defaults is written, so they are a part of the protocol.

A `Job` goes from an API server through Redis to a worker, `Event`s come back.

`seq` counts the job's output tokens and `pos` its output characters *before* this event; both go on
across workers, so an overlap can be trimmed and a gap is seen. `epoch` is the fence: it grows with
every dispatch, and what carries an older one is dropped. A job that answers with data, and not with
text, has no output before its end, which is one event, `answered`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from msgspec import Struct, field

FinishReason: TypeAlias = Literal["stop", "length"]
JobKind: TypeAlias = Literal["chat", "completion", "embed", "score", "tokenize", "detokenize"]
LIGHT_KINDS: frozenset[JobKind] = frozenset({"tokenize", "detokenize"})
"""Jobs that need the tokenizer and not the engine: they do not wait for a slot."""
ConstraintKind: TypeAlias = Literal["json_object", "json_schema", "regex", "choice", "grammar"]

LOWEST = -9999.0
"""Stands for the logarithm of 0, as in OpenAI's answers."""

DEFAULT_CLASS = 8
"""Of the 16 priority classes: 0 goes first, 15 last."""


class Sampling(Struct, frozen=True, kw_only=True, omit_defaults=True):
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


class Constraint(Struct, frozen=True):
    """What the output must match; the engine allows only tokens that keep to it.

    `value` is the JSON text of a schema, a regular expression that the whole output matches, the
    JSON list of the texts to choose from, or a grammar (GBNF or EBNF); for "json_object" it is
    empty. `param` is the field of the request that it comes from: an error about it names that.
    """

    kind: ConstraintKind
    value: str = ""
    param: str = "response_format"


class Continuation(Struct, frozen=True, kw_only=True):
    """Where an interrupted job goes on: all that another worker needs to pick it up exactly."""

    tokens: tuple[int, ...]  # output tokens the API server has received
    chars: int  # output characters it has received: less than the tokens' text if some is held back
    prompt_hash: str
    fingerprint: str


class Inputs(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a job that answers with data works on; its answer has a row for each item."""

    items: tuple[str | tuple[int, ...], ...] = ()  # texts or token ids
    queries: tuple[str, ...] = ()  # kind "score": one for all items, or one for each
    param: str = "input"  # the field of the request that the items come from
    first: int = 0  # the first item's index in it, for messages
    truncate: int | None = None  # tokens kept of an item; -1: the model's most; None: as the worker
    dimensions: int | None = None  # kind "embed": of a vector; None: all
    add_special: bool = True  # kind "tokenize": with the special tokens around a plain prompt


class Job(Struct, frozen=True, kw_only=True, omit_defaults=True):
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


class Row(Struct, frozen=True, array_like=True, gc=False):
    """Written as an array, with its kind first if it has one.

    None is part of a cycle, so the garbage collector need not know them.
    """


class TokenLogprob(Row, frozen=True):
    """The log-probability of the token drawn, and of the most likely ones, before any sampling.

    On the wire each is at least LOWEST, as JSON has no infinity.
    """

    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # (token, logprob), most likely first
    pieces: tuple[bytes, ...] = ()  # of the token and of those in `top`; the worker adds them


class Prompt(Row, frozen=True):
    """What a prompt has become, for a reader that shows it (`Job.show_prompt`)."""

    tokens: tuple[int, ...]
    pieces: tuple[bytes, ...]  # one per token
    logprobs: tuple[TokenLogprob | None, ...] | None = None  # one per token; the first has none


class Started(Row, frozen=True, tag="started"):
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


class Delta(Row, frozen=True, tag="delta"):
    """New output. `text` may be empty while a character or a stop string is incomplete."""

    job: str
    epoch: int
    seq: int
    pos: int
    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None = None


class Progress(Row, frozen=True, tag="progress"):
    """Sent every second for each live job, so that a lost tail shows as a gap."""

    job: str
    epoch: int
    seq: int
    pos: int


class Finished(Row, frozen=True, tag="finished"):
    """The end of the output; `text` is what was still held back. `seq` is the number of tokens."""

    job: str
    epoch: int
    seq: int
    pos: int
    text: str
    finish_reason: FinishReason
    stop: str | None = None  # the stop string that was hit, if one was
    prompt_tokens: int | None = None  # where only the end tells: Started said 0


class Answered(Row, frozen=True, tag="answered"):
    """The whole answer of a job that answers with data: a row for each item, in their order.

    A row is, by the job's kind: "embed": base64 of the vector as little-endian float32; "score": a
    number; "tokenize": a list of token ids; "detokenize": a text.
    """

    job: str
    epoch: int
    rows: tuple[Any, ...]
    prompt_tokens: int


class Failed(Row, frozen=True, tag="failed"):
    """The end without an answer, for the reason that `code` names (`queueserve.errors`)."""

    job: str
    epoch: int
    code: str
    message: str
    param: str | None = None


class Orphaned(Row, frozen=True, tag="orphaned"):
    """The job's worker is gone; the reader must resume the job under this epoch, or lose it."""

    job: str
    epoch: int


Event: TypeAlias = Started | Delta | Progress | Finished | Answered | Failed | Orphaned


class Result(Struct, frozen=True):
    """The whole output of a job that is done."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    stop: str | None = None  # the stop string that has ended the text
    fingerprint: str = ""  # of the engine that wrote it


class Answer(Struct, frozen=True):
    """The rows of a job that answers with data (`Answered` says what they are)."""

    rows: tuple[Any, ...]
    prompt_tokens: int


class Reason(Struct, frozen=True):
    """Why a job has no output: what `code` names (`queueserve.errors`)."""

    code: str
    message: str
    param: str | None = None


class Failure(Struct, frozen=True):
    """What is kept of a job that has failed or expired; the functions write it, too."""

    error: Reason


class ModelCard(Struct, frozen=True, kw_only=True):
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
    images: bool = False  # its messages may hold some
