"""A model-free engine: deterministic tokens at a set pace, for trying QueueServe and for its tests.

The "model" is a function of the prompt, the seed (above temperature 0) and the index of the token,
so a sequence that is continued on another worker gives the same tokens. Its text mixes words with
characters that take 2 to 4 tokens, because that is where streaming goes wrong.
"""

from __future__ import annotations

import asyncio
import math
from array import array
from collections import Counter
from dataclasses import replace
from itertools import islice

import queueserve
from queueserve.errors import ContextLengthExceededError, InvalidRequestError, QueueServeError
from queueserve.protocol import Constraint, FinishReason, TokenLogprob
from queueserve.queue.tasks import Tasks
from workers.engines.base import (
    EngineInfo,
    Output,
    Sequence,
    Sink,
    Tokenizer,
)
from workers.engines.fake_constrained import Walk
from workers.engines.fake_model import LOGITS, Model
from workers.engines.fake_tokens import EOS, VOCABULARY, WORDS, FakeTokenizer
from workers.engines.fake_vectors import DIMENSIONS, vector_of
from workers.engines.grammar import Grammars, Matcher

_CACHED = 16  # tokens: the grain of the prefix cache
_CACHE_BLOCKS = 65_536


class _Running:
    """One sequence on its way."""

    def __init__(
        self, sequence: Sequence, *, room: int, wait: int, cached: int, matcher: Matcher | None
    ) -> None:
        sampling = sequence.sampling
        self.id = sequence.id
        self.error = _refusal(sequence, room)
        self._sampling = sampling
        seed = sampling.seed if sampling.temperature > 0 else None
        self._drawn = Model(sequence.prompt, sampling, seed)
        self._likely = Model(sequence.prompt, sampling, None)
        self._count = len(sequence.generated)
        self._limit = room if sampling.max_tokens is None else min(room, sampling.max_tokens)
        self._walk = None if matcher is None else Walk(matcher, self._drawn.key)
        endless = sampling.ignore_eos and matcher is None  # the end of a grammar is always an end
        self._ends = set(sampling.stop_token_ids) | (set() if endless else {EOS})
        self._wait = wait  # steps that the prompt still takes
        self._cached = cached
        self._begun = bool(sequence.generated)
        self._seen = Counter(sequence.generated)
        self._tokens = sequence.prompt
        self._prompt = frozenset(sequence.prompt)
        self._plain = (
            self._walk is None
            and not sampling.logit_bias
            and sampling.logprobs is None
            and not sampling.presence_penalty
            and not sampling.frequency_penalty
            and sampling.repetition_penalty == 1
            and not (sampling.stop_token_ids and sampling.min_tokens)
        )

    def step(self) -> Output | None:
        """Return what this step gives; None while the prompt is being read."""
        if self.error is not None:
            return Output(self.id, error=self.error)
        if self._wait:
            self._wait -= 1
            return None
        output = self._next()
        if not self._begun:
            self._begun = True
            output = replace(output, cached_tokens=self._cached, prompt_logprobs=self._scored())
        return output

    def _next(self) -> Output:
        if self._count >= self._limit:
            return Output(self.id, finish="length")
        try:
            token, logprobs = self._draw()
        except QueueServeError as error:
            return Output(self.id, error=error)
        if token in self._ends:
            return Output(self.id, finish="stop")
        self._count += 1
        finish: FinishReason | None = "length" if self._count >= self._limit else None
        return Output(self.id, (token,), logprobs, finish)

    def _draw(self) -> tuple[int, tuple[TokenLogprob, ...] | None]:
        if self._plain:
            return self._drawn.best(self._count), None
        token = self._best() if self._walk is None else self._allowed(self._walk)
        self._seen[token] += 1
        if self._sampling.logprobs is None:
            return token, None
        # They are the model's before any sampling, so neither seed nor bias changes them.
        return token, (self._likely.logprob(self._count, token, top=self._sampling.logprobs),)

    def _scored(self) -> tuple[TokenLogprob, ...] | None:
        top = self._sampling.prompt_logprobs
        if top is None:
            return None
        models = (
            Model(self._tokens[:at], self._sampling, None) for at in range(1, len(self._tokens))
        )
        pairs = zip(models, self._tokens[1:], strict=True)
        return tuple(model.logprob(0, token, top=top) for model, token in pairs)

    def _allowed(self, walk: Walk) -> int:
        early = self._count < self._sampling.min_tokens
        but = self._ends if early else {EOS} if self._sampling.ignore_eos else ()
        return walk.draw(self._count, but=but)

    def _best(self) -> int:
        scores = self._scores()
        token = max(scores, key=lambda token: (scores[token], -token))
        if scores[token] < 0:  # all likely ones are banned: every other token's score is 0
            token = next((word for word in WORDS if word not in scores), token)
        return token

    def _scores(self) -> dict[int, float]:
        sampling, seen = self._sampling, self._seen
        scores = dict(zip(self._drawn.likely(self._count), LOGITS, strict=True))
        for token, by in sampling.logit_bias.items():
            scores[token] = scores.get(token, 0.0) + by
        for token, score in scores.items():
            if seen[token] or token in self._prompt:
                factor = sampling.repetition_penalty
                scores[token] = score / factor if score > 0 else score * factor
            if seen[token]:
                scores[token] -= sampling.presence_penalty
                scores[token] -= sampling.frequency_penalty * seen[token]
        if self._count < sampling.min_tokens:
            scores |= dict.fromkeys(self._ends, -math.inf)
        return scores


def _refusal(sequence: Sequence, room: int) -> QueueServeError | None:
    known = range(len(VOCABULARY))
    if room <= 0:
        return ContextLengthExceededError(
            f"the prompt has {len(sequence.prompt)} tokens, and the context has no room for more",
            param="messages",
        )
    for param, tokens in (
        ("prompt", sequence.prompt),
        ("logit_bias", sequence.sampling.logit_bias),
        ("stop_token_ids", sequence.sampling.stop_token_ids),
    ):
        unknown = next((token for token in tokens if token not in known), None)
        if unknown is not None:
            return InvalidRequestError(
                f"token {unknown} is not in the vocabulary of {len(VOCABULARY)}", param=param
            )
    return None


class FakeEngine:
    """Steps all sequences together, one token each per tick.

    `tick` is the time of a step in seconds; 0 is full speed, with one turn of the event loop
    between two steps. `prefill` is how many prompt tokens a step reads, 0 for all at once.
    `start_delay` is the time in seconds that loading takes. top_p, top_k and min_p change nothing.
    """

    def __init__(
        self,
        *,
        slots: int = 8,
        context_length: int = 4096,
        tick: float = 0.02,
        prefill: int = 0,
        start_delay: float = 0.0,
        fingerprint: str = "fake-1",
    ) -> None:
        self.info = EngineInfo(
            engine="fake",
            scores_prompts=True,
            version=queueserve.__version__,
            fingerprint=fingerprint,
            context_length=context_length,
            slots=slots,
            tasks=("chat", "completion", "embed", "score"),
        )
        self.dimensions = DIMENSIONS
        self.tokenizer: Tokenizer = FakeTokenizer()
        self.steps = 0
        self._tick = tick
        self._prefill = prefill
        self._start_delay = start_delay
        self._sequences: dict[str, _Running] = {}  # the first `slots` of them run
        self._cache: dict[int, None] = {}  # hashes of prompt prefixes, oldest first
        self._grammars = Grammars(lambda: VOCABULARY, frozenset({EOS}))
        self._compiling: dict[str, asyncio.Task[None]] = {}
        self._tasks = Tasks()
        self._handle: asyncio.Handle | None = None
        self._due = 0.0

    async def start(self, sink: Sink) -> None:
        """Be ready after `start_delay`."""
        self._loop = asyncio.get_running_loop()
        self._sink = sink
        await asyncio.sleep(self._start_delay)

    def add(self, sequence: Sequence) -> None:
        """Start a sequence at the next step, or once its constraint is compiled."""
        self.abort(sequence.id)
        if sequence.constraint is None:
            self._add(sequence, None)
        else:
            compiling = self._tasks.start(self._compile(sequence, sequence.constraint), "compile")
            self._compiling[sequence.id] = compiling

    async def _compile(self, sequence: Sequence, constraint: Constraint) -> None:
        matcher = None
        try:
            matcher = await asyncio.to_thread(
                self._grammars.matcher, constraint, sequence.generated
            )
        except QueueServeError as error:
            self._sink([Output(sequence.id, error=error)])
        del self._compiling[sequence.id]
        if matcher is not None:
            self._add(sequence, matcher)

    def _add(self, sequence: Sequence, matcher: Matcher | None) -> None:
        cached = self._look_up(sequence.prompt)
        tokens = len(sequence.prompt) + len(sequence.generated) - cached
        self._sequences[sequence.id] = _Running(
            sequence,
            room=self.info.context_length - len(sequence.prompt),
            wait=(tokens - 1) // self._prefill if self._prefill else 0,
            cached=cached,
            matcher=matcher,
        )
        if self._handle is None:
            self._due = self._loop.time()
            self._schedule()

    def abort(self, sequence_id: str) -> None:
        """Forget a sequence; nothing of it follows."""
        if compiling := self._compiling.pop(sequence_id, None):
            compiling.cancel()
        self._sequences.pop(sequence_id, None)
        if not self._sequences:
            self._stop()

    async def embed(self, inputs: list[tuple[int, ...]]) -> list[array[float]]:
        """Return vectors that are alike where the tokens are; each takes a tick."""
        vectors = []
        unknown = next((t for tokens in inputs for t in tokens if t >= len(VOCABULARY)), None)
        if unknown is not None:
            raise InvalidRequestError(f"the model has no token {unknown}", param="input")
        for tokens in inputs:
            await asyncio.sleep(self._tick)
            self.steps += 1
            vectors.append(vector_of(tokens))
        return vectors

    async def close(self) -> None:
        """Forget all sequences and stop the clock."""
        await self._tasks.aclose()
        self._sequences.clear()
        self._stop()

    def _stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _schedule(self) -> None:
        """Set the clock for the next step, a tick after the last one was due: it cannot drift."""
        if not self._tick:
            self._handle = self._loop.call_soon(self._step)
            return
        self._due = max(self._due + self._tick, self._loop.time())
        self._handle = self._loop.call_at(self._due, self._step)

    def _step(self) -> None:
        self._handle = None
        self.steps += 1
        outputs = []
        for running in list(islice(self._sequences.values(), self.info.slots)):
            output = running.step()
            if output is None:
                continue
            outputs.append(output)
            if output.finish is not None or output.error is not None:
                del self._sequences[running.id]
        if self._sequences:  # an idle engine has no timer
            self._schedule()
        if outputs:
            self._sink(outputs)

    def _look_up(self, prompt: tuple[int, ...]) -> int:
        """Return how many tokens of the prompt were cached, and cache them all."""
        cached, prefix = 0, 0
        for start in range(0, len(prompt) - _CACHED, _CACHED):
            prefix = hash((prefix, prompt[start : start + _CACHED]))
            if prefix in self._cache and cached == start:
                cached += _CACHED
            self._cache[prefix] = None
        while len(self._cache) > _CACHE_BLOCKS:
            del self._cache[next(iter(self._cache))]
        return cached
