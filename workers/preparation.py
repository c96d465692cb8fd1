"""What comes before the engine: a job becomes a run, and a run a sequence."""

from __future__ import annotations

import hashlib
from array import array

from msgspec.structs import replace

from queueserve.errors import ContextLengthExceededError, InvalidRequestError, WorkerLostError
from queueserve.protocol import Job
from queueserve.queue.consumer import Assignment, Consumer
from workers.defaults import Defaults, with_defaults
from workers.engines.base import Engine, Sequence
from workers.marks import Marks
from workers.prompting import Prompt, Prompter
from workers.run import Run


def _hash(tokens: tuple[int, ...]) -> str:
    return hashlib.blake2b(array("q", tokens).tobytes(), digest_size=8).hexdigest()


class Preparation:
    """Makes prompts, and refuses what the engine cannot run."""

    def __init__(
        self, engine: Engine, prompter: Prompter, *, marks: Marks, defaults: Defaults
    ) -> None:
        self._engine = engine
        self._prompter = prompter
        self._marks = marks
        self._defaults = defaults

    def check_kind(self, job: Job) -> None:
        """Raises InvalidRequestError for a kind of job that the engine cannot run."""
        tasks = self._engine.info.tasks
        if job.kind not in self._engine.info.kinds:
            raise InvalidRequestError(
                f"this model takes no jobs of kind {job.kind}: it takes {', '.join(tasks)}",
                param="model",
            )

    async def run(self, assignment: Assignment, consumer: Consumer) -> Run:
        """The run of a job, with what another worker has generated of it.

        Raises InvalidRequestError, and WorkerLostError where it cannot go on here.
        """
        job, relays = assignment.job, self._engine.info.relays
        prompt = Prompt(()) if relays else await self._prompter.prompt(job)
        self._check_length(prompt.tokens, job.sampling.max_tokens)
        if job.sampling.prompt_logprobs is not None and not self._engine.info.scores_prompts:
            engine = self._engine.info.engine
            raise InvalidRequestError(f"{engine} gives no logprobs of a prompt.", param="echo")
        run = Run(
            assignment,
            consumer,
            prompt=prompt.tokens,
            prompt_hash=_hash(prompt.tokens),
            detokenizer=self._marks.shown(job, self._engine.tokenizer.detokenizer()),
            piece=self._engine.tokenizer.piece,
            opening=prompt.opening,
        )
        at = assignment.resume
        if relays and at is not None:
            if at.tokens:
                raise WorkerLostError("An answer cannot be continued by the server of this model.")
            at = None  # nothing was sent, so it starts over
        if at is not None:
            if at.fingerprint != self._engine.info.fingerprint:
                raise WorkerLostError("No worker with the same model was there to continue.")
            run.restore(at)
        return run

    def sequence(self, run: Run) -> Sequence | None:
        """What the engine gets; None if nothing was asked for, or only the end was lost."""
        job = run.assignment.job
        sampling = with_defaults(job, self._defaults)
        room = self._engine.info.context_length - len(run.prompt)
        most = room if sampling.max_tokens is None else sampling.max_tokens
        scoring = sampling.prompt_logprobs is not None and not run.tokens
        if run.stopped or (len(run.tokens) >= most and not scoring):
            return None
        return Sequence(
            id=run.sequence_id,
            prompt=run.prompt,
            generated=tuple(run.tokens),
            sampling=replace(sampling, max_tokens=most),
            constraint=job.constraint,
            adapter=job.model if job.model in self._engine.info.adapters else None,
            priority=job.priority,
            job=job,
        )

    def _check_length(self, prompt: tuple[int, ...], max_tokens: int | None) -> None:
        limit = self._engine.info.context_length
        asked = 1 if max_tokens is None else max_tokens
        if len(prompt) + asked > limit:
            raise ContextLengthExceededError(
                f"This model's maximum context length is {limit} tokens, but {len(prompt) + asked} "
                f"were asked for: {len(prompt)} in the prompt, {asked} for the answer.",
                param="messages",
            )
