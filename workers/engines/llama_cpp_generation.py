"""One sequence, from its first request to llama.cpp to its end, on a thread of its own.

The normal way is one streamed request for all tokens. llama.cpp's server has a habit that matters
here: while the output ends inside a character it sends nothing, and then one message with the text
of all tokens since, but the id of the last one only. The others follow from their number and bytes.
Where that leaves a choice (a few emoji) the likeliest is checked against the slot's cache: it holds
the true tokens, and llama.cpp says how many of them a prompt has in common with it. Where there is
nothing to go by (the request ended inside a character, say) the lost tokens are drawn again, and
the rest too, by one request a token, which always tells its id.

A constraint's grammar goes with the first request, and llama.cpp sees to it. It can only start at
the beginning of an output, so later requests (the sequence goes on here after a fail-over, or in
steps) are free: what comes is checked here, and where it leaves the grammar, one token is drawn
with all that the grammar forbids banned.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from queueserve.errors import EngineError
from queueserve.protocol import FinishReason, TokenLogprob
from workers.engines import llama_cpp_requests as requests
from workers.engines.base import Output, Sequence
from workers.engines.grammar import Grammars, Matcher, to_lark
from workers.engines.llama_cpp_server import Drawn, Ended, LlamaServer, Message, Progress
from workers.engines.llama_cpp_vocabulary import Vocabulary


class Emit(Protocol):
    """Takes what a step brought (None: nothing yet); `more` if the next step brings a token."""

    def __call__(self, item: Output | None, /, *, more: bool = False) -> None:
        """Called on the sequence's thread."""


_LOOK = 64  # alternatives looked at before all of the vocabulary


@dataclass(frozen=True, slots=True)
class _Held:
    """Tokens that came in one message: what all but the last one may be."""

    candidates: list[tuple[int, ...]]
    last: int
    logprob: TokenLogprob | None


class Generation:
    """Runs one sequence in one slot; `tokens` is all that it has generated."""

    def __init__(
        self,
        sequence: Sequence,
        *,
        slot: int,
        limit: int,  # output tokens, those given included
        server: LlamaServer,
        vocabulary: Vocabulary,
        grammars: Grammars,
        emit: Emit,
        rest: Callable[[], None],  # no more is to come
        cancelled: Callable[[], bool],
    ) -> None:
        self.tokens = list(sequence.generated)
        self._sequence = sequence
        self._sampling = sequence.sampling
        self._slot = slot
        self._limit = limit
        self._server = server
        self._vocabulary = vocabulary
        self._grammars = grammars
        self._matcher: Matcher | None = None
        self._grammar: str | None = None  # for the first request only
        self._strayed = False  # the last token drawn left the grammar, and does not count
        self._emit = emit
        self._rest = rest
        self._cancelled = cancelled
        # A constraint always ends with one of the model's own ends, when nothing else is left.
        own = sequence.constraint is None and self._sampling.ignore_eos
        ends = frozenset() if own else server.ends
        self._stops = ends | frozenset(self._sampling.stop_token_ids)
        ignored = server.ends.difference(self._sampling.stop_token_ids)
        self._never = ignored if self._sampling.ignore_eos else frozenset()
        self._finish: FinishReason | None = None
        self._cached: int | None = None  # until it is reported
        self._scored: tuple[TokenLogprob, ...] | None = None  # the prompt, until it is reported
        self._started = False
        self._held: _Held | None = None
        self._stepping = requests.needs_steps(self._sampling)

    def run(self) -> None:
        """Generate until the end, or until cancelled.

        Raises as `LlamaServer.complete` and `Grammars.matcher` do.
        """
        if constraint := self._sequence.constraint:
            self._matcher = self._grammars.matcher(constraint, self.tokens)
            self._grammar = None if self.tokens else to_lark(constraint)
        try:
            asked = self._sampling.prompt_logprobs
            if asked is not None and not self.tokens:
                self._score(asked)
            if len(self.tokens) >= self._limit:
                self._take([], [])
            while self._finish is None and not self._cancelled():
                self._next()
        finally:
            self._rest()

    def _score(self, top: int) -> None:
        """Ask how likely each token of the prompt is after those before it."""
        prompt = self._sequence.prompt
        scored = []
        for at in range(1, len(prompt)):
            if self._cancelled():
                return
            scored.append(self._look_up(prompt[:at], prompt[at], top))
            self._emit(None)
        self._scored = tuple(scored)

    def _next(self) -> None:
        if self._held:
            self._resolve(self._held)
        elif self._matcher and self._strayed:
            self._return(self._matcher)
        elif self._stepping and self._started:
            self._step(banned=self._banned())
        else:
            self._stream()

    def _room(self) -> int:
        # Until min_tokens are there the ends are banned, which takes a request of its own.
        minimum = self._sampling.min_tokens
        return min(minimum, self._limit) - len(self.tokens) if self._early() else self._left()

    def _left(self) -> int:
        return self._limit - len(self.tokens)

    def _early(self) -> bool:
        return len(self.tokens) < self._sampling.min_tokens

    def _banned(self) -> frozenset[int]:
        return self._never | self._stops if self._early() else self._never

    def _stream(self) -> None:
        drawn = 0

        def on_message(message: Message) -> bool:
            nonlocal drawn
            if self._cancelled():
                return True
            if isinstance(message, Progress):
                return self._progress(message)
            if isinstance(message, Ended):
                self._stepping |= message.count > drawn
                return False
            missing, drawn = message.count - drawn - 1, message.count
            return self._stepping or self._drawn(message, missing)

        request = requests.draw(
            self._sequence,
            self.tokens,
            slot=self._slot,
            count=self._room(),
            banned=self._banned(),
            stream=True,
            grammar=self._grammar,
        )
        self._grammar = None
        self._server.complete(request, on_message)
        self._started = True

    def _progress(self, message: Progress) -> bool:
        if not self._started:
            self._started = True  # what comes later is the cache of our own tokens
            self._cached = min(message.cached, len(self._sequence.prompt))
        self._emit(None)
        return False

    def _drawn(self, message: Drawn, missing: int) -> bool:
        """Take what a message brings; True if the request must end here."""
        if missing == 0:
            self._take([message.token], [message.logprob])
            return self._strayed or self._finish is not None
        known = self._vocabulary.pieces[message.token]
        data = message.data
        candidates = []
        if data is not None and data.endswith(known):
            candidates = self._vocabulary.held_back(data[: len(data) - len(known)], missing)
        if len(candidates) == 1 and self._sampling.logprobs is None:
            self._take([*candidates[0], message.token], [])
            return self._strayed or self._finish is not None
        self._held = _Held(candidates, message.token, message.logprob)
        return True

    def _resolve(self, held: _Held) -> None:
        self._held = None
        tokens = next(iter(held.candidates), ())
        if not tokens or (len(held.candidates) > 1 and not self._confirmed(tokens, held.last)):
            self._stepping = True
            return
        logprobs = [held.logprob]
        if self._sampling.logprobs is not None:
            before = [self._logprob(tokens[:at], token) for at, token in enumerate(tokens)]
            logprobs = [*before, held.logprob]
        self._take([*tokens, held.last], logprobs)

    def _confirmed(self, tokens: tuple[int, ...], last: int) -> bool:
        """Whether the slot's cache has these tokens after what is known.

        If it has not, that tells little: the cache of some models cannot go back in part.
        """
        known = [*self._sequence.prompt, *self.tokens, *tokens]
        request = requests.look(
            [*known, last],
            slot=self._slot,
            forced=self._vocabulary.plain_token(),
            alternatives=0,
        )
        return self._server.answer(request).cached >= len(known)

    def _step(self, *, banned: Collection[int], only: Collection[int] = ()) -> None:
        request = requests.draw(
            self._sequence,
            self.tokens,
            slot=self._slot,
            count=1,
            banned=banned,
            only=only,
            stream=False,
        )
        ended = self._server.answer(request)
        (token,) = ended.tokens
        logprob = ended.logprobs[0] if ended.logprobs else None
        if logprob is None and self._sampling.logprobs is not None:
            logprob = self._logprob((), token)
        self._take([token], [logprob])

    def _return(self, matcher: Matcher) -> None:
        """Draw a token that the grammar allows."""
        self._strayed = False
        mask = matcher.allowed(but=self._banned())
        allowed = [token for token, free in enumerate(mask) if free]
        # llama.cpp reads and repeats every bias: those of a vocabulary cost more than a token does.
        if 2 * len(allowed) < len(mask) and self._sampling.repetition_penalty == 1.0:
            self._step(banned=(), only=allowed)
        else:
            self._step(banned=[token for token, free in enumerate(mask) if not free])
        if self._strayed:
            raise EngineError("llama.cpp drew a token that was banned")

    def _logprob(self, before: tuple[int, ...], token: int) -> TokenLogprob:
        """How likely `token` was after all that is there and `before`: llama.cpp is asked again."""
        tokens = (*self._sequence.prompt, *self.tokens, *before)
        return self._look_up(tokens, token, self._sampling.logprobs or 0)

    def _look_up(self, tokens: tuple[int, ...], token: int, wanted: int) -> TokenLogprob:
        plain = self._vocabulary.plain_token()
        for alternatives in (max(wanted, _LOOK), len(self._vocabulary.pieces)):
            answer = self._server.answer(
                requests.look([*tokens], slot=self._slot, forced=plain, alternatives=alternatives)
            )
            top = answer.logprobs[0].top
            if found := [value for other, value in top if other == token]:
                break
        return TokenLogprob(found[0], top[:wanted])

    def _take(self, tokens: list[int], logprobs: list[TokenLogprob | None]) -> None:
        """Add tokens to the output, up to its end."""
        wanted = self._sampling.logprobs
        taken: list[int] = []
        for token in tokens:
            if self._matcher and self._strays(self._matcher, token):
                self._strayed = True
                break
            if token in self._stops:
                self._finish = "stop"
                break
            taken.append(token)
            if len(taken) >= self._left():
                break
        self.tokens += taken
        if self._finish is None and self._left() <= 0:
            self._finish = "length"
        own = [
            TokenLogprob(one.logprob, one.top[:wanted])
            for one in logprobs[: len(taken)]
            if one is not None
        ]
        output = Output(
            self._sequence.id,
            tuple(taken),
            None if wanted is None else tuple(own),
            self._finish,
            cached_tokens=self._cached,
            prompt_logprobs=self._scored,
        )
        if self._strayed and not taken:
            self._emit(None)
            return
        self._cached = self._scored = None
        self._emit(output, more=self._finish is None)

    def _strays(self, matcher: Matcher, token: int) -> bool:
        """Whether `token` leaves the grammar; if not, the matcher has taken it in."""
        if token in self._server.ends:
            return not matcher.complete
        return token not in self._stops and not matcher.accept(token)
