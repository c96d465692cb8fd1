"""One job as its reader sees it: no duplicate, no gap, and a change of workers does not show."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from enum import Enum, auto
from functools import partial
from typing import Self

from msgspec.structs import replace

from queueserve.errors import CancelledJobError, QueueServeError, WorkerLostError, from_code
from queueserve.protocol import (
    Answer,
    Answered,
    Continuation,
    Delta,
    Event,
    Failed,
    Finished,
    Job,
    Orphaned,
    Progress,
    Started,
)
from queueserve.queue.producer import Standing, State


class Need(Enum):
    """What the owner must do for a stream after an event."""

    NOTHING = auto()
    RESYNC = auto()  # something is missing: the worker must send it again
    RESUME = auto()  # the worker is gone: the job must go on elsewhere
    PROOF = auto()  # somebody claims a newer epoch: Redis must say who runs the job


_READERS = itertools.count(1)
_UNPROVEN = 256  # events kept while Redis is asked; what is lost then is asked for


def _nobody_waits() -> None:
    pass


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


class JobStream:
    """An async iterator over batches of events: Started, Delta …, Finished; or one Answered.

    Iteration raises the job's QueueServeError if it fails. `aclose` cancels a job that has not
    ended.

    `reader` tells it from other streams of this process. `epoch` and `worker` are Redis's word,
    never an event's own: what carries another epoch, or says that another worker has started, is
    not taken in.
    """

    def __init__(self, job: Job, close: Callable[[JobStream], Awaitable[None]]) -> None:
        self.job = job
        self.reader = str(next(_READERS))
        self.epoch = 0
        self.parked = 0  # the epoch under which an orphan waits to be resumed
        self.worker = ""
        self.position = 0  # in the queue when it was submitted; 0: it did not wait
        self.tokens: list[int] = []
        self.chars = 0
        self.started: Started | None = None
        self.ended = False
        self.heard = time.monotonic()  # when anything was last heard of the job
        self._ready: list[Event] = []
        self._submitted = False  # Redis has told how the job stands
        self._begun = -1  # the epoch whose Started was seen
        self._unproven: list[Event] = []  # of an epoch that Redis has not confirmed yet
        self._error: QueueServeError | None = None
        self._tell: Callable[[], None] = _nobody_waits  # there is something, or the end
        self._close = close

    def __aiter__(self) -> Self:
        return self

    def watch(self, ready: Callable[[], None]) -> None:
        """Call `ready` from now on when there is something to `take`, instead of iterating.

        It is not called again for what comes until that is taken, but for the end.
        """
        self._tell = ready

    @property
    def over(self) -> bool:
        """Whether it has ended well, and all that came was taken."""
        return self.ended and self._error is None and not self._ready

    def take(self) -> list[Event]:
        """What is there, without waiting. With nothing left, raises as iteration would."""
        if not self._ready:
            if self._error:
                raise self._error
            if self.ended:
                raise StopAsyncIteration
        batch, self._ready = self._ready, []
        return batch

    async def __anext__(self) -> list[Event]:
        while not (batch := self.take()):
            woken = asyncio.get_running_loop().create_future()
            self._tell = partial(_wake, woken)
            await woken
        return batch

    async def aclose(self) -> None:
        """Let go of the job; it is cancelled if it still runs. Idempotent and never raises."""
        await self._close(self)

    @property
    def continuation(self) -> Continuation | None:
        """Where another worker must go on; None: at the start."""
        if self.started is None or self.job.inputs is not None:
            return None  # nothing was delivered, so it starts over
        return Continuation(
            tokens=tuple(self.tokens),
            chars=self.chars,
            prompt_hash=self.started.prompt_hash,
            fingerprint=self.started.fingerprint,
        )

    def accept(self, event: Event) -> Need:
        """Take an event in, if it is new and fits."""
        epoch = event.epoch
        if (
            epoch == self._begun == self.epoch
            and type(event) is Delta
            and event.seq == len(self.tokens)
            and not self.ended
        ):
            self.heard = time.monotonic()
            return self._extend(event)  # the one that counts: once per token
        if self.ended or epoch < self.epoch:
            return Need.NOTHING
        if epoch > self.epoch:
            if len(self._unproven) < _UNPROVEN:
                self._unproven.append(event)
            return Need.PROOF if self._submitted else Need.NOTHING
        self.heard = time.monotonic()
        return self._take(event)

    def placed(self, state: State, epoch: int, worker: str) -> Need:
        """Hear from Redis how the job stands; take in what was said under that epoch before."""
        if self.ended:
            return Need.NOTHING
        self._submitted = True
        if state == "orphaned":
            self.parked = epoch
        if epoch >= self.epoch:  # else it is late, or Redis has lost data: the next one is greater
            self.epoch, self.worker = epoch, worker
        held, self._unproven = self._unproven, []
        needs = [self.accept(event) for event in held if event.epoch <= self.epoch]
        if state == "orphaned":
            return Need.RESUME
        return Need.RESYNC if Need.RESYNC in needs else Need.NOTHING

    def _take(self, event: Event) -> Need:  # noqa: PLR0911 - one way out per kind of event
        match event:
            case Delta():
                return self._delta(event)
            case Progress():
                return self._progress(event)
            case Started():
                return self._begin(event) if event.worker == self.worker else Need.NOTHING
            case Finished():
                return self._finish(event)
            case Answered():
                self._answer(event)
                return Need.NOTHING
            case Failed() if self.worker:
                self.fail(from_code(event.code, event.message, event.param))
                return Need.NOTHING
            case Failed():
                return Need.RESYNC  # nobody runs it, so only Redis can know
            case Orphaned():
                return Need.RESUME

    def stand(self, standing: Standing) -> Need:
        """Compare with what Redis says of the job, after a silence or a lost connection."""
        if self.ended:
            return Need.NOTHING
        self.heard = time.monotonic()
        match standing.state:
            case "queued" | "orphaned":
                return self.placed(standing.state, standing.epoch, "")
            case "running":
                self.placed("running", standing.epoch, standing.worker)
                return Need.RESYNC
            case "done" if standing.result and standing.epoch >= self.epoch:
                return self._complete(standing)
            case "failed" | "expired" if standing.error:
                self.fail(standing.error)
            case _:
                self.fail(CancelledJobError("The request was cancelled."))
        return Need.NOTHING

    def fail(self, error: QueueServeError) -> None:
        """End with `error`, after what is there already."""
        if not self.ended:
            self.ended = True
            self._error = error
            self._tell()

    def _give(self, event: Event) -> None:
        self._ready.append(event)
        if self.ended or len(self._ready) == 1:
            self._tell()

    def _begin(self, event: Started) -> Need:
        self._begun = event.epoch
        if self.started is None:
            self.started = event
            self._give(event)
        elif event.prompt_hash != self.started.prompt_hash:
            self._diverged()
        return self._progress(event)

    def _progress(self, event: Progress | Started) -> Need:
        if self.job.inputs is not None:  # it comes whole, so nothing of it can be missing yet
            return Need.NOTHING
        missing = event.seq > len(self.tokens) or event.epoch != self._begun
        return Need.RESYNC if missing else Need.NOTHING

    def _delta(self, event: Delta) -> Need:
        have = len(self.tokens)
        if event.epoch != self._begun or event.seq > have:
            return Need.RESYNC
        skip = have - event.seq
        if skip:
            if tuple(self.tokens[event.seq : event.seq + len(event.tokens)]) != event.tokens[:skip]:
                self._diverged()
                return Need.NOTHING
            if skip >= len(event.tokens):
                return Need.NOTHING
            event = replace(
                event,
                seq=have,
                pos=self.chars,
                tokens=event.tokens[skip:],
                text=event.text[max(0, self.chars - event.pos) :],
                logprobs=event.logprobs and event.logprobs[skip:],
            )
        return self._extend(event)

    def _extend(self, event: Delta) -> Need:
        self.tokens += event.tokens
        self.chars += len(event.text)
        self._ready.append(event)
        if len(self._ready) == 1:
            self._tell()
        return Need.NOTHING

    def _finish(self, event: Finished) -> Need:
        if event.epoch != self._begun or event.seq > len(self.tokens):
            return Need.RESYNC
        self.ended = True
        self._give(
            replace(event, pos=self.chars, text=event.text[max(0, self.chars - event.pos) :])
        )
        return Need.NOTHING

    def _answer(self, event: Answered) -> None:
        self.ended = True
        self._give(event)

    def _complete(self, standing: Standing) -> Need:
        # The tail was lost, and the worker has forgotten it: the rest comes from the stored result.
        result, epoch, have = standing.result, standing.epoch, len(self.tokens)
        assert result is not None  # noqa: S101 - the caller's pattern says so
        if isinstance(result, Answer):
            self._answer(Answered(self.job.id, epoch, result.rows, result.prompt_tokens))
            return Need.NOTHING
        if result.tokens[:have] != tuple(self.tokens):
            self._diverged()
            return Need.NOTHING
        if self.started is None:
            if self.job.show_prompt:  # only the worker knew what it became
                self.fail(WorkerLostError("What the prompt became was lost with its worker."))
                return Need.NOTHING
            told, cached = result.prompt_tokens, result.cached_tokens
            mark = result.fingerprint
            self._begin(Started(self.job.id, epoch, 0, told, cached, "", mark, ""))
        self.epoch = self._begun = epoch
        if tokens := result.tokens[have:]:
            text = result.text[self.chars :]
            self._delta(Delta(self.job.id, epoch, have, self.chars, text, tokens))
        rest, why, stop = result.text[self.chars :], result.finish_reason, result.stop
        seq, prompt = len(result.tokens), result.prompt_tokens
        return self._finish(Finished(self.job.id, epoch, seq, self.chars, rest, why, stop, prompt))

    def _diverged(self) -> None:
        self.fail(WorkerLostError("The answer could not be continued exactly on another worker."))
