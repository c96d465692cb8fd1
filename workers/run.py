"""One job on one engine: the tokens it has produced, and the text and events they become. Pure."""

from __future__ import annotations

from collections.abc import Callable

from queueserve.errors import WorkerLostError
from queueserve.protocol import (
    LOWEST,
    Continuation,
    Delta,
    Finished,
    FinishReason,
    Progress,
    Prompt,
    Result,
    Started,
    TokenLogprob,
)
from queueserve.queue.consumer import Assignment, Consumer
from workers.engines.base import Detokenizer
from workers.stopping import StopFilter


class Run:
    """A job while this worker holds it.

    Text is made one token at a time, so what has gone out after k tokens depends on those tokens
    only; a worker that continues the job feeds itself the same tokens and is in the same state.
    """

    def __init__(
        self,
        assignment: Assignment,
        consumer: Consumer,
        *,
        prompt: tuple[int, ...],
        prompt_hash: str,
        detokenizer: Detokenizer,
        piece: Callable[[int], bytes],
        opening: str = "",  # of the prompt, and to be seen in front of the output
    ) -> None:
        self.assignment = assignment
        self.id = assignment.job.id
        self.epoch = assignment.epoch  # the fence that everything this run says must carry
        # The engine's name for it: a job may come back to this worker under a later epoch.
        self.sequence_id = f"{self.id}:{self.epoch}"
        self.consumer = consumer
        self.api = assignment.api
        self.prompt = prompt
        self.prompt_hash = prompt_hash
        self.cached_tokens = 0
        self.prompt_tokens: int | None = None  # where only the end tells; else it is the prompt's
        self.started = False
        self.fingerprint = ""  # of the engine, once it has started
        self.stopped = False  # a stop string was hit: nothing after it counts
        self.tokens: list[int] = []
        self.chars = 0  # characters that have gone out
        self._pieces: list[str] = []
        self._ends: list[int] = []  # characters that had gone out after each token
        self._logprobs: list[TokenLogprob] = []
        self._published = 0  # tokens in published deltas
        self._detokenizer = detokenizer
        self._piece = piece
        self._prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
        self._opening = opening
        self._stops = StopFilter(assignment.job.sampling.stop)
        job = assignment.job
        free = job.constraint is None and not job.continue_final_message
        self._at_start = job.kind == "chat" and free

    def feed(self, tokens: tuple[int, ...], logprobs: tuple[TokenLogprob, ...] | None) -> None:
        """Take new output tokens in, up to a stop string."""
        for at, token in enumerate(tokens):
            text = self._detokenizer.feed(token)
            if self._at_start:
                text = self._opened(text)
            if self._stops.any:
                text, self.stopped = self._stops.feed(text)
            if self._opening:
                text, self._opening = self._opening + text, ""
            self.tokens.append(token)
            if logprobs:
                self._logprobs.append(self._spelt(token, logprobs[at]))
            if text:
                self._pieces.append(text)
                self.chars += len(text)
            self._ends.append(self.chars)
            if self.stopped:
                return

    def restore(self, at: Continuation) -> None:
        """Take over from another worker. Raises WorkerLostError if it is not the same sequence."""
        if at.prompt_hash != self.prompt_hash:
            raise WorkerLostError("The prompt becomes other tokens on the worker that took over.")
        self.feed(at.tokens, None)
        self._published = len(self.tokens)
        if self.chars != at.chars or len(self.tokens) != len(at.tokens):
            raise WorkerLostError("The output becomes other text on the worker that took over.")

    def starting(self, fingerprint: str) -> Started:
        """The event that says the job runs here."""
        self.fingerprint = fingerprint
        return Started(
            self.id,
            self.epoch,
            self._published,
            len(self.prompt),
            self.cached_tokens,
            self.prompt_hash,
            fingerprint,
            self.consumer.worker,
            self._shown() if self.assignment.job.show_prompt else None,
        )

    def score(self, logprobs: tuple[TokenLogprob, ...]) -> None:
        """Take in how likely each token of the prompt is after those before it, but the first."""
        scored = zip(self.prompt[1:], logprobs, strict=True)
        self._prompt_logprobs = (None, *(self._spelt(token, one) for token, one in scored))

    def _shown(self) -> Prompt:
        return Prompt(self.prompt, tuple(map(self._piece, self.prompt)), self._prompt_logprobs)

    def _spelt(self, token: int, one: TokenLogprob) -> TokenLogprob:
        tokens = (token, *(other for other, _ in one.top))
        top = tuple((other, _finite(value)) for other, value in one.top)
        return TokenLogprob(_finite(one.logprob), top, tuple(map(self._piece, tokens)))

    def delta(self, *, at_least: int = 1) -> Delta | None:
        """What is new since the last one; None if there are fewer than `at_least` new tokens."""
        if len(self.tokens) - self._published < at_least:
            return None
        delta = self.since(self._published)
        self._published = len(self.tokens)
        return delta

    def since(self, seq: int) -> Delta:
        """The output from token `seq` on."""
        pos = self._ends[seq - 1] if seq else 0
        new = len(self.tokens) - seq
        if new == 1 and len(self._pieces) > 1:  # the last piece is the last token's
            text = self._pieces[-1] if self.chars > pos else ""
        else:
            text = self.text[pos:]
        # A continued run has logprobs for its own tokens only, which are the last ones.
        logprobs = tuple(self._logprobs[-new:]) if len(self._logprobs) >= new > 0 else None
        return Delta(self.id, self.epoch, seq, pos, text, tuple(self.tokens[seq:]), logprobs)

    def progress(self) -> Progress:
        """How far the published output goes."""
        chars = self._ends[self._published - 1] if self._published else 0
        return Progress(self.id, self.epoch, self._published, chars)

    def finish(self, reason: FinishReason) -> Finished:
        """End the output; gives out what was held back, unless a stop string was hit."""
        pos = self.chars
        if not self.stopped:
            text, self.stopped = self._stops.feed(self._detokenizer.flush())
            text = text if self.stopped else text + self._stops.flush()
            self._pieces.append(text)
            self.chars += len(text)
        why: FinishReason = "stop" if self.stopped else reason
        rest, stop = self.text[pos:], self._stops.hit
        return Finished(
            self.id, self.epoch, len(self.tokens), pos, rest, why, stop, self.prompt_tokens
        )

    def result(self, reason: FinishReason) -> Result:
        """What is stored for a reader that missed the end."""
        tokens, stop = tuple(self.tokens), self._stops.hit
        prompt = self.prompt_tokens or len(self.prompt)
        cached, mark = self.cached_tokens, self.fingerprint
        return Result(self.text, tokens, reason, prompt, cached, stop, mark)

    @property
    def text(self) -> str:
        """All text that has gone out."""
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""

    def _opened(self, text: str) -> str:
        """`text` without the space that SentencePiece puts before an answer's first word."""
        if text:
            self._at_start = False
        return text.removeprefix(" ")


def _finite(value: float) -> float:
    return max(LOWEST, value)  # also for what is no number
