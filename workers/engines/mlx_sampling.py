"""The sampling of the mlx engine: one object for each sequence, in mlx-lm's two hooks.

mlx-lm calls `process` with the scores of a row, then `draw` with what became of them, and both only
describe the computation: it is done while the next step is prepared. A draw depends on nothing but
(seed, index of the token), so a sequence can go on in another process as if nothing had happened.

The steps: penalties, logit_bias, min_tokens, the constraint, temperature, top_k, top_p, min_p.
"""

from __future__ import annotations

from collections import deque
from typing import Any, TypeAlias

import mlx.core as mx

from queueserve.errors import EngineError, QueueServeError
from queueserve.protocol import TokenLogprob
from workers.engines.base import Sequence
from workers.engines.grammar import Matcher
from workers.engines.uniform import uniform

Array: TypeAlias = Any  # mlx is not followed by mypy

_ALMOST = 1 - 1e-6  # a draw stays below what rounding has left of the whole


class Drawing:
    """From scores to tokens, for one sequence; `ends` are the tokens that end it."""

    def __init__(
        self,
        sequence: Sequence,
        ends: tuple[int, ...],
        matcher: Matcher | None,
        *,
        vocabulary: int,
    ) -> None:
        self.problem: QueueServeError | None = None  # why it cannot go on
        self._own = own = sequence.sampling
        self._ends = ends
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._index = len(sequence.generated)  # of the token to draw next
        self._last: Array | None = None  # the token drawn last here
        self._raw: Array | None = None  # log-probabilities before anything bears on them
        self._told: deque[tuple[Array, Array, Array]] = deque()  # of tokens that are to be told
        self._prompt = _marks(sequence.prompt, vocabulary) if self._penalised else None
        self._counts = _marks(sequence.generated, vocabulary) if self._penalised else None
        self._bias = mx.zeros(vocabulary)
        if own.logit_bias:
            tokens = mx.array(list(own.logit_bias))
            self._bias = self._bias.at[tokens].add(mx.array(list(own.logit_bias.values())))
        self._banned = _marks(ends, vocabulary) > 0

    @property
    def _penalised(self) -> bool:
        own = self._own
        return bool(own.presence_penalty or own.frequency_penalty or own.repetition_penalty != 1.0)

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken; with top_k = 1 there is nothing to draw."""
        return self._own.temperature == 0 or self._own.top_k == 1

    @property
    def plain(self) -> bool:
        """Whether the argmax over the raw scores gives every token."""
        own = self._own
        return (
            self.greedy
            and self._matcher is None
            and own.logprobs is None
            and not own.logit_bias
            and not own.min_tokens
            and not self._penalised
        )

    def process(self, _tokens: Array, scores: Array) -> Array:
        """Return `scores` [1, vocabulary] with all that comes before drawing."""
        scores, own = scores.astype(mx.float32), self._own
        if own.logprobs is not None:
            self._raw = scores - mx.logsumexp(scores, axis=-1, keepdims=True)
        if self._counts is not None:
            scores = self._penalise(scores, self._counts)
        if own.logit_bias:
            scores = scores + self._bias
        early = self._index < own.min_tokens
        if self._matcher is not None:
            return self._constrain(self._matcher, scores, but=self._ends if early else ())
        return mx.where(self._banned, -mx.inf, scores) if early else scores

    def draw(self, scores: Array) -> Array:
        """Return the token to take, [1], for `scores` [1, vocabulary]."""
        token = mx.argmax(scores, axis=-1) if self.greedy else self._drawn(scores)
        if self._raw is not None:
            self._told.append(_told(self._raw[0], token, self._own.logprobs or 0))
        if self._counts is not None:
            self._counts = self._counts.at[token].add(1.0)
        self._index += 1
        self._last = token
        return token

    def told(self) -> TokenLogprob:
        """Return the log-probabilities of the next token that is given out."""
        own, ids, values = self._told.popleft()
        top = zip(ids.tolist(), values.tolist(), strict=True)
        return TokenLogprob(own.item(), tuple(top))

    def _penalise(self, scores: Array, counts: Array) -> Array:
        own = self._own
        if own.repetition_penalty != 1.0:
            factor = own.repetition_penalty
            seen = (self._prompt + counts) > 0
            punished = mx.where(scores < 0, scores * factor, scores / factor)
            scores = mx.where(seen, punished, scores)
        there = own.presence_penalty * (counts > 0).astype(mx.float32)
        return scores - there - own.frequency_penalty * counts

    def _constrain(self, matcher: Matcher, scores: Array, *, but: tuple[int, ...]) -> Array:
        token = None if self._last is None else self._last.item()
        if self.problem is not None or token in self._ends:  # the step after the last one
            return scores
        try:
            if token is not None and not matcher.accept(token):
                raise EngineError("the output left the constraint")
            mask = matcher.allowed(but=(*but, *(matcher.ends if self._own.ignore_eos else ())))
        except QueueServeError as error:  # it must not take the batch with it
            self.problem = error
            return scores
        view: Any = memoryview(mask)  # a buffer, which mlx's types do not name
        allowed = mx.array(view)
        allowed = mx.pad(allowed, (0, scores.shape[-1] - len(mask)))
        return mx.where(allowed == 0, -mx.inf, scores)

    def _drawn(self, scores: Array) -> Array:
        """Invert the cumulative distribution in the order of the token ids."""
        own = self._own
        scores = scores - scores.max(axis=-1, keepdims=True)  # a tiny temperature overflows less
        scores = scores / max(own.temperature, 1e-5)
        if 0 < own.top_k < self._vocabulary:
            at = scores.shape[-1] - own.top_k
            lowest = mx.partition(scores, at, axis=-1)[:, at : at + 1]
            scores = mx.where(scores < lowest, -mx.inf, scores)
        probabilities = mx.softmax(scores, axis=-1, precise=True)
        if own.top_p < 1:
            best = mx.sort(probabilities, axis=-1)[:, ::-1]
            before = mx.cumsum(best, axis=-1) - best
            lowest = mx.where(before < own.top_p, best, mx.inf).min(axis=-1, keepdims=True)
            probabilities = mx.where(probabilities < lowest, 0.0, probabilities)
        if own.min_p > 0:
            lowest = probabilities.max(axis=-1, keepdims=True) * own.min_p
            probabilities = mx.where(probabilities < lowest, 0.0, probabilities)
        borders = mx.cumsum(probabilities, axis=-1)
        wanted = borders[:, -1:] * min(uniform(own.seed, self._index), _ALMOST)
        return mx.argmax(borders > wanted, axis=-1)


def _marks(tokens: tuple[int, ...], vocabulary: int) -> Array:
    """How often each token of the vocabulary is among `tokens`."""
    known = [token for token in tokens if token < vocabulary]
    return mx.zeros(vocabulary).at[mx.array(known, dtype=mx.int32)].add(1.0)


def _told(raw: Array, token: Array, top: int) -> tuple[Array, Array, Array]:
    best = mx.argsort(-raw)[:top]
    return raw[token[0]], best, raw[best]
