"""The small interface that every engine satisfies; `tests/workers/engines` is its contract.

An engine deals in token ids only. Chat templates, text, stop strings and Redis are the runner's
business, so an adapter stays small and every engine behaves alike. After each of its steps an
engine calls its sink once, on the event loop, with the outputs of all sequences that moved: that
one call becomes one published message per API server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

from queueserve.errors import EngineError, QueueServeError
from queueserve.protocol import (
    DEFAULT_CLASS,
    LIGHT_KINDS,
    Constraint,
    FinishReason,
    Job,
    JobKind,
    Sampling,
    TokenLogprob,
)


class EngineDiedError(EngineError):
    """The engine can run nothing any more; in a new process it may."""


class EngineStuckError(EngineDiedError):
    """The engine does not come back from a step: the process must end without waiting for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What the engine turned out to be, once it is ready."""

    engine: str  # the name of the adapter
    version: str  # of the engine's library
    fingerprint: str  # of what decides the tokens; workers with equal ones are interchangeable
    context_length: int  # tokens of prompt and output together, for one sequence
    slots: int  # sequences it really runs at once
    scores_prompts: bool = False  # it knows `sampling.prompt_logprobs`
    tasks: tuple[JobKind, ...] = ("chat", "completion")  # the kinds of jobs it can run
    adapters: tuple[str, ...] = ()  # model names beside the model's own: `Sequence.adapter`
    relays: bool = (
        False  # it passes jobs on to a server, and deals in pieces of text, not in tokens
    )

    images: bool = False  # messages may hold some; what they show is not looked at before

    @property
    def kinds(self) -> tuple[JobKind, ...]:
        """What a worker with it takes: its own tasks, and those that need a tokenizer only."""
        return self.tasks if self.relays else (*self.tasks, *sorted(LIGHT_KINDS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequence:
    """One sequence to generate: tokens after `prompt` + `generated`.

    `generated` is not empty when the sequence is continued here after another worker died. It
    counts for penalties, for `min_tokens` and `max_tokens` (which include it), and as the index of
    a seeded sampler. `sampling.stop` is not the engine's business; `stop_token_ids` and the
    end-of-sequence tokens (unless `ignore_eos`) are. The output, `generated` included, matches
    `constraint`; an engine that cannot see to that ends the sequence with an error.
    `sampling.prompt_logprobs` count only where nothing is `generated`, and only an engine that
    `scores_prompts` gets them; with them `max_tokens` may be 0.
    """

    id: str
    prompt: tuple[int, ...]
    generated: tuple[int, ...] = ()
    sampling: Sampling
    constraint: Constraint | None = None
    adapter: str | None = None  # one of `EngineInfo.adapters`; None: the model itself
    priority: int = DEFAULT_CLASS  # for an engine that must choose which sequence waits: 0 first
    job: Job | None = None  # what it was made of; an engine that `relays` reads nothing else


@dataclass(frozen=True, slots=True)
class Output:
    """What one step gave one sequence.

    `tokens` leaves out the end-of-sequence or stop token that ended it (finish "stop"). Exactly one
    output of a sequence that is not aborted has `finish` or `error` set, and it is the last.
    """

    id: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None  # one per token, if asked for
    finish: FinishReason | None = None
    error: QueueServeError | None = None
    cached_tokens: int | None = (
        None  # prompt tokens found in the cache; on the first output, if known
    )
    prompt_logprobs: tuple[TokenLogprob, ...] | None = (
        None  # of all tokens of the prompt but the first; on the first output, if asked for
    )
    prompt_tokens: int | None = None  # of an engine that `relays`, which learns it at the end


Sink: TypeAlias = Callable[[list[Output]], None]


class Detokenizer(Protocol):
    """Turns one sequence's output tokens into text, one token at a time.

    Deterministic: the text given out after k tokens depends on those k tokens only. That is what
    makes a continuation exact.
    """

    def feed(self, token: int) -> str:
        """The text that `token` completes: whole characters only, often one word, may be empty."""

    def flush(self) -> str:
        """What is left at the end: U+FFFD where bytes never became a character, else empty."""


class Tokenizer(Protocol):
    """The model's tokenizer, and what its chat template needs."""

    chat_template: str | None  # the model's own Jinja template
    special_tokens: Mapping[str, str]  # "bos_token", "eos_token", …: the template's variables

    async def encode(self, text: str, *, add_special: bool) -> tuple[int, ...]:
        """Token ids of `text`; special tokens written in it are recognised.

        `add_special` adds what the model wants at the start of a plain prompt (a BOS token, say);
        it is off for rendered chat templates, which bring their own. Must not block the event loop.
        """

    def detokenizer(self) -> Detokenizer:
        """A new one, for one sequence's output."""

    def piece(self, token: int) -> bytes:
        """The bytes that a token of the vocabulary stands for; a special token's name."""


class Engine(Protocol):
    """A running model. Construction is cheap and imports nothing heavy; `start` does the work."""

    @property
    def info(self) -> EngineInfo:
        """What it is; after start."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's; after start."""

    @property
    def steps(self) -> int:
        """A number that grows with every step: a stuck engine can be told from an idle one."""

    async def start(self, sink: Sink) -> None:
        """Load the model and be ready. The event loop stays free meanwhile.

        Raises EngineError with a reason that a person can act on.
        """

    def add(self, sequence: Sequence) -> None:
        """Start a sequence; it joins the running batch at the next step. Never blocks.

        A sequence that cannot run (an unsupported parameter, no memory) ends in an output with
        `error`.
        """

    def abort(self, sequence_id: str) -> None:
        """Stop a sequence and free its slot at the next step; no output of it follows this call.

        Unknown and finished ids are ignored.
        """

    async def close(self) -> None:
        """Stop everything and give the memory back, within a bound. Idempotent."""


@runtime_checkable
class Fallible(Protocol):
    """What an engine adds to `Engine` that can be lost while this process lives.

    While it is lost it gives no outputs; its sequences go on elsewhere.
    """

    async def lost(self) -> str:
        """Wait until it can run nothing, and return the reason.

        Raises EngineDiedError, with the reason, if only a new process can help.
        """

    async def back(self) -> None:
        """Wait until it can run sequences; at once while it can."""
