"""The sampling of the transformers engine: one object in the place of the manager's own processors.

The manager of transformers knows temperature, top_k and top_p only, and draws from one generator
for the whole batch. Here every sequence has parameters of its own, and its draws depend on nothing
but (seed, index of the token), so it can go on in another process as if nothing had happened. The
manager itself stays greedy: where a token is drawn its score becomes infinite, and the manager's
argmax finds it.

The steps for one sequence: penalties, logit_bias, min_tokens, the constraint, temperature, top_k,
top_p, min_p.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from queueserve.errors import EngineError, QueueServeError
from queueserve.protocol import Sampling, TokenLogprob
from workers.engines.grammar import Matcher
from workers.engines.uniform import uniform

Tensor: TypeAlias = Any  # torch is not followed by mypy

_NUCLEUS = (256, 4096)  # how many candidates are looked at before a whole row is sorted


@dataclass(slots=True)
class Drawing:
    """What the sampler knows about one sequence."""

    sampling: Sampling
    prompt: tuple[int, ...]
    ends: tuple[int, ...]  # the tokens that end it
    matcher: Matcher | None = None  # has followed what was generated elsewhere
    problem: QueueServeError | None = None  # why it cannot go on
    unscored: bool = False  # its prompt_logprobs are asked for
    scored: tuple[TokenLogprob, ...] | None = None  # they, until they are sent
    logprobs: list[TokenLogprob] = field(default_factory=list)  # of the tokens not yet sent
    _counts: Counter[int] = field(default_factory=Counter)  # output tokens seen so far
    _counted: int = 0
    _matched: int | None = None  # output tokens that the matcher has seen, once it sees any here

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken; with top_k = 1 there is nothing to draw."""
        return self.sampling.temperature == 0 or self.sampling.top_k == 1

    @property
    def penalised(self) -> bool:
        """Whether tokens that were there before count for anything."""
        own = self.sampling
        return bool(own.presence_penalty or own.frequency_penalty or own.repetition_penalty != 1.0)

    def plain(self, index: int) -> bool:
        """Whether the manager's argmax over the raw scores gives the token already."""
        own = self.sampling
        return (
            self.greedy
            and self.matcher is None
            and own.logprobs is None
            and not own.logit_bias
            and index >= own.min_tokens
            and not self.penalised
        )

    def adjust(self, scores: Tensor, output: list[int]) -> None:
        """Change one sequence's `scores` [vocabulary] in place by all that comes before drawing."""
        own = self.sampling
        if self.penalised:
            self._penalise(scores, output)
        if own.logit_bias:
            tokens, by = zip(*own.logit_bias.items(), strict=True)
            scores[_ids(tokens, scores)] += torch.tensor(by, device=scores.device)
        early = len(output) < own.min_tokens
        if self.matcher is not None:
            self._constrain(self.matcher, scores, output, but=self.ends if early else ())
        elif early:
            scores[_ids([end for end in self.ends if end < len(scores)], scores)] = -torch.inf

    def _constrain(
        self, matcher: Matcher, scores: Tensor, output: list[int], *, but: tuple[int, ...]
    ) -> None:
        if self.problem is not None:
            return
        new = output[len(output) if self._matched is None else self._matched :]
        self._matched = len(output)
        try:
            if not all(map(matcher.accept, new)):
                raise EngineError("the output left the constraint")
            mask = matcher.allowed(but=(*but, *(matcher.ends if self.sampling.ignore_eos else ())))
        except QueueServeError as error:  # it must not take the batch with it
            self.problem = error
            return
        allowed = torch.frombuffer(bytearray(mask), dtype=torch.uint8).to(scores.device)
        scores[: len(mask)].masked_fill_(allowed == 0, -torch.inf)
        scores[len(mask) :] = -torch.inf

    def _penalise(self, scores: Tensor, output: list[int]) -> None:
        own = self.sampling
        self._counts.update(output[self._counted :])
        self._counted = len(output)
        if own.repetition_penalty != 1.0:
            seen = _ids({*self.prompt, *self._counts}, scores)
            picked = scores[seen]
            factor = own.repetition_penalty
            scores[seen] = torch.where(picked < 0, picked * factor, picked / factor)
        if self._counts and (own.presence_penalty or own.frequency_penalty):
            tokens, counts = zip(*self._counts.items(), strict=True)
            times = torch.tensor(counts, dtype=scores.dtype, device=scores.device)
            scores[_ids(tokens, scores)] -= own.presence_penalty + own.frequency_penalty * times


def _ids(tokens: Any, like: Tensor) -> Tensor:
    return torch.tensor(list(tokens), dtype=torch.long, device=like.device)


def draw(scores: Tensor, drawings: list[Drawing], numbers: list[float]) -> Tensor:
    """Draw one token a row: [rows] of token ids from `scores` [rows, vocabulary].

    The draw inverts the cumulative distribution in the order of the token ids. So a small change of
    the scores moves each border a little, and the same number nearly always gives the same token.
    """

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=scores.device).unsqueeze(1)

    all_of = [drawing.sampling for drawing in drawings]
    scores = scores - scores.max(dim=-1, keepdim=True).values  # a tiny temperature overflows less
    scores = scores / column([max(own.temperature, 1e-5) for own in all_of])
    vocabulary = scores.shape[-1]
    if any(0 < own.top_k < vocabulary for own in all_of):
        ranks = [own.top_k if 0 < own.top_k < vocabulary else vocabulary for own in all_of]
        scores = scores.masked_fill(scores < _score_at_rank(scores, ranks), -torch.inf)
    probabilities = torch.softmax(scores, dim=-1)
    if any(own.top_p < 1 for own in all_of):
        lowest = _nucleus(probabilities, column([own.top_p for own in all_of]))
        probabilities = probabilities.masked_fill(probabilities < lowest, 0)
    if any(own.min_p > 0 for own in all_of):
        lowest = probabilities.max(dim=-1, keepdim=True).values * column([o.min_p for o in all_of])
        probabilities = probabilities.masked_fill(probabilities < lowest, 0)
    borders = probabilities.double().cumsum(dim=-1)
    wanted = torch.tensor(numbers, dtype=torch.float64, device=scores.device).unsqueeze(1)
    found = torch.searchsorted(borders, wanted * borders[:, -1:], right=True).squeeze(1)
    return found.clamp(max=vocabulary - 1)  # past the end only where scores were NaN


def _score_at_rank(scores: Tensor, ranks: list[int]) -> Tensor:
    """The score at this rank of its row, [rows, 1]; -inf for the last rank: all may stay."""
    vocabulary = scores.shape[-1]
    best = scores.topk(max(rank for rank in ranks if rank < vocabulary), dim=-1).values
    at = torch.tensor([min(rank, best.shape[-1]) - 1 for rank in ranks], device=scores.device)
    lowest = best.gather(1, at.unsqueeze(1))
    off = torch.tensor([rank >= vocabulary for rank in ranks], device=scores.device)
    return lowest.masked_fill(off.unsqueeze(1), -torch.inf)


def _nucleus(probabilities: Tensor, top_p: Tensor) -> Tensor:
    """The lowest probability in the smallest set of likely tokens that holds `top_p`, [rows, 1]."""
    off = top_p >= 1
    vocabulary = probabilities.shape[-1]
    for size in (*(size for size in _NUCLEUS if size < vocabulary), vocabulary):
        best = probabilities.topk(size, dim=-1).values
        held = best.double().cumsum(dim=-1)
        enough = held >= top_p
        if bool((enough[:, -1:] | off).all()):
            break
    # Rounding may keep the whole row below a top_p near 1: then all of it stays.
    enough[:, -1] = True
    return best.gather(1, enough.int().argmax(dim=-1, keepdim=True)).masked_fill(off, 0)


class Sampler:
    """Stands where the manager of transformers keeps its list of logits processors."""

    tensors_required = 0  # our parameters do not travel in the manager's tensors
    do_processing = False  # read by the manager after `prepare_tensor_args`

    def __init__(
        self,
        find: Callable[[str], Drawing | None],
        on_step: Callable[[], None],
        score: Callable[[tuple[int, ...], int], tuple[TokenLogprob, ...]],
    ) -> None:
        """`find` gives the drawing of a request, None for an aborted one.

        `score` gives the log-probabilities of a prompt, and so many alternatives.
        """
        self._find = find
        self._on_step = on_step
        self._score = score
        self._rows: list[tuple[int, Drawing, list[int]]] = []

    def fill_defaults(self, _tensor: Tensor) -> None:
        """Part of what the manager expects of a processor."""

    def check_kwargs(self, _kwargs: dict[str, Any]) -> None:
        """Part of what the manager expects of a processor."""

    def prepare_tensor_args(self, requests_in_batch: list[Any], arg_storage: Tensor) -> Tensor:
        """Note which rows of the coming scores need us; called once before every forward pass."""
        self._on_step()
        self._rows = []
        states = (request.state for request in requests_in_batch if request.has_new_token)
        for row, state in enumerate(states):
            drawing = self._find(state.request_id)
            if drawing is None:
                continue
            if drawing.unscored:
                drawing.unscored = False
                asked = drawing.sampling.prompt_logprobs or 0
                drawing.scored = self._score(drawing.prompt, asked)
            # A preempted request has its output moved over to the initial tokens.
            start = len(drawing.prompt)
            index = len(state.initial_tokens) + len(state.generated_tokens) - start
            if not drawing.plain(index):
                self._rows.append(
                    (row, drawing, [*state.initial_tokens[start:], *state.generated_tokens])
                )
        self.do_processing = bool(self._rows)
        return arg_storage

    def __call__(self, _input_ids: Tensor, scores: Tensor, _arguments: Tensor) -> Tensor:
        """Return `scores` [rows, vocabulary] whose argmax is the token to take in every row."""
        asked = [(row, it) for row, it, _ in self._rows if it.sampling.logprobs is not None]
        raw = torch.log_softmax(scores[[row for row, _ in asked]], dim=-1) if asked else None
        for row, drawing, output in self._rows:
            drawing.adjust(scores[row], output)
        drawn = [(row, it, len(output)) for row, it, output in self._rows if not it.greedy]
        if drawn:
            rows = [row for row, _, _ in drawn]
            numbers = [uniform(it.sampling.seed, index) for _, it, index in drawn]
            tokens = draw(scores[rows], [it for _, it, _ in drawn], numbers)
            scores[rows, tokens] = torch.inf
        if raw is not None:
            _record(raw, scores[[row for row, _ in asked]].argmax(dim=-1), [it for _, it in asked])
        return scores


def _record(logprobs: Tensor, tokens: Tensor, drawings: list[Drawing]) -> None:
    """Note the log-probabilities of the `tokens` [rows] taken and of the most likely ones."""
    most = max(drawing.sampling.logprobs or 0 for drawing in drawings)
    best = logprobs.topk(min(most, logprobs.shape[-1]), dim=-1)
    own = logprobs.gather(1, tokens.unsqueeze(1)).squeeze(1).tolist()
    rows = zip(drawings, own, best.indices.tolist(), best.values.tolist(), strict=True)
    for drawing, logprob, ids, values in rows:
        count = drawing.sampling.logprobs or 0
        top = tuple(zip(ids[:count], values[:count], strict=True))
        drawing.logprobs.append(TokenLogprob(logprob, top))
