"""The event loop's side of an engine whose batches run in a thread of this process.

It checks sequences, compiles their constraints and hands them to a batcher; what the batcher gives
comes back to the loop once a step.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeAlias

from queueserve.errors import EngineError, InvalidRequestError, QueueServeError
from queueserve.queue.tasks import Tasks
from workers.engines.base import EngineDiedError, EngineInfo, Output, Sequence, Sink, Tokenizer
from workers.engines.grammar import Grammars, Matcher
from workers.engines.room import tokens_left

log = logging.getLogger(__name__)

_CLOSE_WITHIN = 10.0  # seconds

Step: TypeAlias = tuple[str, Output]
"""What one step gave one request: its key, and its output."""


class Batcher(Protocol):
    """Runs sequences in a thread of its own."""

    def add(
        self,
        key: str,
        sequence: Sequence,
        *,
        ends: tuple[int, ...],
        max_new: int,
        matcher: Matcher | None = None,
    ) -> None:
        """Hand over a sequence; called on the event loop.

        `key` is never used twice. `ends` are the tokens that end it; after `max_new` tokens, not
        counting those generated before, it ends all the same. `matcher` follows its constraint.
        """

    def cancel(self, key: str) -> None:
        """Free what the request holds before the next step; called on the event loop."""

    def stop(self, timeout: float) -> None:
        """End the thread after the step in hand, or give up waiting after `timeout` seconds."""


class BatchedEngine:
    """Satisfies `workers.engines.base.Engine`, but for `start`, which must set what is missing.

    And `Fallible`: a batcher that can run nothing any more calls `_died`.
    """

    info: EngineInfo
    tokenizer: Tokenizer
    steps: int = 0
    _grammars: Grammars
    _sink: Sink
    _loop: asyncio.AbstractEventLoop

    def __init__(self) -> None:
        self._batcher: Batcher | None = None
        self._closed = False
        self._live: dict[str, str] = {}  # sequence → its key in the batcher
        self._numbers = itertools.count()
        self._ends: frozenset[int] = frozenset()
        self._vocabulary = range(0)
        self._tasks = Tasks()
        self._death = asyncio.Event()
        self._cause = ""

    def _ready(self, batcher: Batcher) -> bool:
        """Take a batcher that runs; False, and it is stopped, if nobody waits for it any more."""
        if self._closed:
            batcher.stop(_CLOSE_WITHIN)
            return False
        self._batcher = batcher
        return True

    def add(self, sequence: Sequence) -> None:
        """Satisfies `workers.engines.base.Engine`."""
        if self._batcher is None:
            raise RuntimeError("the engine is not running")
        self.abort(sequence.id)
        key = self._live[sequence.id] = f"{next(self._numbers)}:{sequence.id}"
        try:
            left = tokens_left(sequence, self.info.context_length)
            self._check_tokens(sequence)
        except QueueServeError as problem:
            self._loop.call_soon(self._emit, [(key, Output(sequence.id, error=problem))])
            return
        scores = sequence.sampling.prompt_logprobs is not None and not sequence.generated
        if left <= 0 and not scores:
            self._loop.call_soon(self._emit, [(key, Output(sequence.id, finish="length"))])
            return
        # A constraint always ends with one of the model's own ends, when nothing else is left.
        own = self._ends if sequence.constraint or not sequence.sampling.ignore_eos else frozenset()
        ends = tuple(own.union(sequence.sampling.stop_token_ids))
        if sequence.constraint is None:
            self._batcher.add(key, sequence, ends=ends, max_new=left)
            return
        compile_ = partial(self._grammars.matcher, sequence.constraint, sequence.generated)
        start = partial(self._batcher.add, key, sequence, ends=ends, max_new=left)
        self._tasks.start(self._constrained(key, sequence, compile_, start), f"compile {key}")

    async def _constrained(
        self,
        key: str,
        sequence: Sequence,
        compile_: Callable[[], Matcher],
        start: Callable[..., None],
    ) -> None:
        try:
            matcher = await asyncio.to_thread(compile_)
        except QueueServeError as error:
            self._emit([(key, Output(sequence.id, error=error))])
            return
        except Exception as error:  # the sequence must hear of it
            log.exception("a constraint could not be compiled")
            problem = EngineError(f"llguidance: {error!r}")
            self._emit([(key, Output(sequence.id, error=problem))])
            return
        if self._live.get(sequence.id) == key and self._batcher is not None:
            start(matcher=matcher)

    def _check_tokens(self, sequence: Sequence) -> None:
        named = {
            "prompt": {*sequence.prompt, *sequence.generated},
            "logit_bias": sequence.sampling.logit_bias,
            "stop_token_ids": sequence.sampling.stop_token_ids,
        }
        for param, tokens in named.items():
            # One token that the model has no row for would break the whole batch.
            unknown = next((token for token in tokens if token not in self._vocabulary), None)
            if unknown is not None:
                raise InvalidRequestError(f"the model has no token {unknown}", param=param)

    def abort(self, sequence_id: str) -> None:
        """Satisfies `workers.engines.base.Engine`."""
        key = self._live.pop(sequence_id, None)
        if key is not None and self._batcher is not None:
            self._batcher.cancel(key)

    async def lost(self) -> str:
        """Satisfies `workers.engines.base.Fallible`: only a new process can help."""
        await self._death.wait()
        raise EngineDiedError(self._cause)

    async def back(self) -> None:
        """Satisfies `workers.engines.base.Fallible`: what has died stays dead."""

    async def close(self) -> None:
        """Satisfies `workers.engines.base.Engine`."""
        self._closed = True
        self._live.clear()
        await self._tasks.aclose()
        batcher, self._batcher = self._batcher, None
        if batcher is not None:
            await asyncio.to_thread(batcher.stop, _CLOSE_WITHIN)

    # These three are called in the batcher's thread.

    def _count_step(self) -> None:
        self.steps += 1

    def _post(self, steps: list[Step]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._emit, steps)

    def _died(self, cause: str) -> None:
        self._cause = cause
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._death.set)

    def _emit(self, steps: list[Step]) -> None:
        outputs = []
        for key, output in steps:
            if self._live.get(output.id) != key:
                continue  # aborted while this was on its way
            if output.finish is not None or output.error is not None:
                del self._live[output.id]
            outputs.append(output)
        if outputs:
            self._sink(outputs)
