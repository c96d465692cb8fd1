"""The jobs of one engine: prompt → engine → events."""

from __future__ import annotations

import asyncio
import logging
import time

from queueserve.encoding import encode
from queueserve.errors import (
    EngineError,
    QueueServeError,
)
from queueserve.protocol import Event, Failed, Failure, FinishReason, Progress, Reason
from queueserve.queue.consumer import Assignment, Claim, Consumer, Finish
from queueserve.queue.publisher import Publisher
from queueserve.queue.tasks import Tasks
from workers.answering import Answerer
from workers.defaults import Defaults
from workers.engines.base import Engine, Output
from workers.marks import Marks
from workers.preparation import Preparation
from workers.prompting import Prompter
from workers.run import Run
from workers.speed import SpeedMeter

log = logging.getLogger(__name__)

_REMEMBER = 10.0  # seconds after a finish was acknowledged: Redis may lose its last one


class Runner:
    """Runs what is assigned, and remembers what it has finished until Redis surely knows."""

    def __init__(
        self,
        engine: Engine,
        prompter: Prompter,
        publisher: Publisher,
        *,
        stream_interval: int = 1,
        defaults: Defaults | None = None,
        marks: Marks | None = None,
        truncate: bool = False,
    ) -> None:
        self.meter = SpeedMeter()
        self._engine = engine
        self._preparation = Preparation(
            engine, prompter, marks=marks or Marks({}, {}), defaults=defaults or {}
        )
        self._publisher = publisher
        self._interval = stream_interval
        self._answerer = Answerer(engine, prompter, truncate=truncate)
        self._answering: dict[str, asyncio.Task[None]] = {}  # by job: those that answer with data
        self._producing = 0
        self._runs: dict[str, Run] = {}  # by sequence id: on the engine
        self._held: dict[str, int] = {}  # job → epoch: being prepared, or on the engine
        self._moved: dict[str, str] = {}  # job → the API server that reads it now, if it has moved
        self._finished: dict[tuple[str, int], tuple[Finish, float]] = {}
        self._tasks = Tasks()
        self._idle = asyncio.Event()
        self._idle.set()

    async def idle(self) -> None:
        """Wait until nothing runs."""
        await self._idle.wait()

    @property
    def running(self) -> dict[str, int]:
        """Job → epoch of everything this worker works on."""
        return dict(self._held)

    def on_engine(self) -> list[str]:
        """Names of what the engine should be working on."""
        return [*self._runs, *self._answering]

    def knows(self, claim: Claim) -> bool:
        """Whether the claim is held here, or was finished here: it must not run (again)."""
        held = self._held.get(claim.job) == claim.epoch
        return held or (claim.job, claim.epoch) in self._finished

    # What comes from Redis

    def assign(self, assignment: Assignment, consumer: Consumer) -> None:
        """Run a job. Any problem with it ends in a Failed event and a finish."""
        job, epoch = assignment.job.id, assignment.epoch
        held = self._held.get(job)
        if self.knows(Claim(job, epoch)) or (held is not None and held > epoch):
            return
        if held is not None:
            self.drop(job)  # Redis has given it to us anew; what ran here is out of date
        self._held[job] = epoch
        self._idle.clear()
        if assignment.cancelled:
            self._end(Finish(job, epoch, "cancelled"), consumer)
        else:
            task = self._tasks.start(self._prepare(assignment, consumer), f"prepare {job}")
            if assignment.job.inputs is not None:
                self._moved[job] = assignment.api
                self._answering[job] = task

    def cancel(self, job: str, epoch: int, consumer: Consumer) -> None:
        """Stop a job that its reader does not want any more, and free the slot.

        One that is not known here is ended too: its hint is still on its way.
        """
        if self._held.get(job) == epoch:
            self.drop(job)
        if (job, epoch) not in self._finished:
            self._end(Finish(job, epoch, "cancelled"), consumer)

    def refuse(self, claim: Claim, api: str, error: QueueServeError, consumer: Consumer) -> None:
        """End a claimed job that cannot even be read."""
        self._fail(claim.job, claim.epoch, api, error, consumer)

    def drop(self, job: str) -> None:
        """Forget a job that is not ours any more, without a word."""
        epoch = self._held.get(job)
        if task := self._answering.pop(job, None):
            task.cancel()
        self._release(job)
        if run := self._runs.pop(f"{job}:{epoch}", None):
            self._engine.abort(run.sequence_id)
            self._count(-run.started)

    def resync(self, job: str, seq: int, api: str) -> None:
        """Publish a job's events again from token `seq` on, to the API server that reads it now."""
        if job in self._held:
            self._moved[job] = api  # it may be in preparation still
        run = self._runs.get(f"{job}:{self._held.get(job)}")
        if run is None or seq < 0:
            return
        run.api = api
        if run.started:
            self._publisher.publish(api, run.starting(self._engine.info.fingerprint))
            if seq < len(run.tokens):
                run.delta()  # what was not published yet goes out with it
                self._publisher.publish(api, run.since(seq))

    def finished(self, claim: Claim, consumer: Consumer) -> bool:
        """Redis thinks that we hold this: if we have finished it, say so again."""
        known = self._finished.get((claim.job, claim.epoch))
        if known:
            self._publisher.finish(consumer, known[0])
        return known is not None

    # What comes from the engine

    def outputs(self, outputs: list[Output]) -> None:
        """Take one engine step: the sink.

        New jobs come first, and so for their readers: of all that a step brings, a first token has
        been waited for longest.
        """
        for output in sorted(outputs, key=self._goes_on):
            run = self._runs.get(output.id)
            if run is None:
                continue
            try:
                self._step(run, output)
            except Exception:  # one bad sequence must not end the others
                log.exception("job %s failed in the worker", run.id)
                self._engine.abort(run.sequence_id)
                unknown = EngineError("The worker could not go on with this job.")
                self._fail(run.id, run.epoch, run.api, unknown, run.consumer)

    def _goes_on(self, output: Output) -> bool:
        run = self._runs.get(output.id)
        return run is None or run.started

    def _step(self, run: Run, output: Output) -> None:
        if output.cached_tokens is not None:
            run.cached_tokens = output.cached_tokens
        if output.prompt_tokens is not None:
            run.prompt_tokens = output.prompt_tokens
        if output.error is not None:
            self._fail(run.id, run.epoch, run.api, output.error, run.consumer)
            return
        if run.started:  # the first tokens took the prompt's time, which is not measured
            self.meter.tokens += len(output.tokens)
        else:
            run.started = True
            if output.prompt_logprobs is not None:
                run.score(output.prompt_logprobs)
            self._publisher.publish(run.api, run.starting(self._engine.info.fingerprint))
            self._count(1)
        run.feed(output.tokens, output.logprobs)
        ended = run.stopped or output.finish is not None
        if delta := run.delta(at_least=1 if ended else self._interval):
            self._publisher.publish(run.api, delta)
        if ended:
            if output.finish is None:
                self._engine.abort(run.sequence_id)
            self._finish(run, output.finish or "stop")

    # The ways a job ends

    def _finish(self, run: Run, reason: FinishReason) -> None:
        self._remove(run)
        event = run.finish(reason)
        self._publisher.publish(run.api, event)
        cost = (run.prompt_tokens or len(run.prompt)) + len(run.tokens)
        result = encode(run.result(event.finish_reason))
        self._end(Finish(run.id, run.epoch, "done", result, cost), run.consumer)

    def _fail(
        self, job: str, epoch: int, api: str, error: QueueServeError, consumer: Consumer
    ) -> None:
        if run := self._runs.get(f"{job}:{epoch}"):
            self._remove(run)
        self._publisher.publish(api, Failed(job, epoch, error.code, error.message, error.param))
        failure = Failure(Reason(error.code, error.message, error.param))
        self._end(Finish(job, epoch, "failed", encode(failure)), consumer)

    def _end(self, end: Finish, consumer: Consumer) -> None:
        if self._held.get(end.job) == end.epoch:
            self._release(end.job)
        self._finished[end.job, end.epoch] = (end, float("inf"))
        self._publisher.finish(consumer, end)

    def _release(self, job: str) -> None:
        self._held.pop(job, None)
        self._moved.pop(job, None)
        self._answering.pop(job, None)
        if not self._held:
            self._idle.set()

    def _remove(self, run: Run) -> None:
        if self._runs.pop(run.sequence_id, None):
            self._count(-run.started)

    def acknowledged(self, end: Finish) -> None:
        """Redis has taken a finish; forget it some time later."""
        until = time.monotonic() + _REMEMBER
        self._finished[end.job, end.epoch] = (end, until)

    def _count(self, change: int) -> None:
        """Keep count of the runs that produce tokens."""
        self._producing += change
        self.meter.running(self._producing)

    # Before the engine

    async def _prepare(self, assignment: Assignment, consumer: Consumer) -> None:
        job, epoch = assignment.job, assignment.epoch
        try:
            self._preparation.check_kind(job)
            if job.inputs is not None:
                end = await self._answerer.run(
                    assignment, consumer.worker, lambda event: self._tell(job.id, event)
                )
                self._end(end, consumer)
                return
            run = await self._preparation.run(assignment, consumer)
            if self._held.get(job.id) != epoch:
                return  # cancelled, or taken away, while the prompt was made
            self._start(run)
        except QueueServeError as error:
            self._not_started(assignment, error, consumer)
        except Exception:
            log.exception("job %s could not be started", job.id)
            unknown = EngineError("The worker could not start this job.")
            self._not_started(assignment, unknown, consumer)

    def _not_started(
        self, assignment: Assignment, error: QueueServeError, consumer: Consumer
    ) -> None:
        job, epoch = assignment.job.id, assignment.epoch
        if self._held.get(job) == epoch:  # else it was cancelled, or taken away, meanwhile
            self._fail(job, epoch, self._moved.get(job, assignment.api), error, consumer)

    def _start(self, run: Run) -> None:
        self._runs[run.sequence_id] = run
        run.api = self._moved.get(run.id, run.api)
        sequence = self._preparation.sequence(run)
        if sequence is None:  # nothing is left to generate
            self._publisher.publish(run.api, run.starting(self._engine.info.fingerprint))
            self._finish(run, "stop" if run.stopped else "length")
        else:
            self._engine.add(sequence)

    # Every second, and at the end

    def tick(self) -> None:
        """Tell readers how far their jobs are, so that a lost tail shows; forget old finishes."""
        for run in self._runs.values():
            self._publisher.publish(run.api, run.progress())
        for job in self._answering:
            self._tell(job, Progress(job, self._held[job], 0, 0))
        now = time.monotonic()
        for key in [key for key, (_, until) in self._finished.items() if until < now]:
            del self._finished[key]

    def _tell(self, job: str, event: Event) -> None:
        """Publish an event of a job that answers with data, to whoever reads it now."""
        self._publisher.publish(self._moved[job], event)

    def drop_all(self) -> None:
        """Forget every job: they go on elsewhere."""
        for job in list(self._held):
            self.drop(job)

    async def aclose(self) -> None:
        """Stop everything."""
        self.drop_all()
        await self._tasks.aclose()
