"""The continuous batching of mlx-lm, in one thread, with our sampler in it."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeAlias

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, StopSequences
from mlx_lm.models.cache import LRUPromptCache

from queueserve.errors import EngineError
from queueserve.protocol import TokenLogprob
from workers.engines.base import Output, Sequence
from workers.engines.batched import Step
from workers.engines.grammar import Matcher
from workers.engines.mlx_loading import Loaded, score
from workers.engines.mlx_sampling import Drawing

log = logging.getLogger(__name__)

Generator: TypeAlias = Any  # a BatchGenerator: mlx-lm is not followed by mypy

_MODEL = "model"  # what mlx-lm's store of prefixes has several of
_PREFIXES = 64  # sequences that have ended and are kept there, at most
_PREFILL = 256  # tokens of a prompt in one step: so long others wait for their next token


@dataclass(slots=True)
class _Request:
    """One sequence. `key` is its id here."""

    key: str
    sequence: Sequence
    ends: tuple[int, ...]
    max_new: int
    matcher: Matcher | None
    drawing: Drawing | None = None  # once it runs
    scored: tuple[TokenLogprob, ...] | None = None  # its prompt, until that is sent
    cached: int | None = None  # tokens of its prompt that were in the cache, until that is sent


class MlxBatcher:
    """Satisfies `workers.engines.batched.Batcher`. The model lives in its thread only.

    `post` is called in the thread, once a step, with what the step gave to all requests that moved;
    `on_step` before every step; `died`, with the reason, if nothing can run any more. None of them
    may block.
    """

    def __init__(
        self,
        load: Callable[[], Loaded],
        post: Callable[[list[Step]], None],
        on_step: Callable[[], None],
        died: Callable[[str], None],
    ) -> None:
        self._load = load
        self._post = post
        self._on_step = on_step
        self._died = died
        self._moved = threading.Condition()  # guards the next three
        self._new: deque[_Request] = deque()
        self._cancelled: set[str] = set()
        self._stopping = False
        self._waiting: deque[_Request] = deque()
        self._running: dict[int, _Request] = {}  # by their number in the generator
        self._ready: Future[Loaded] = Future()
        self._thread = threading.Thread(target=self._run, name="mlx", daemon=True)

    def start(self) -> Loaded:
        """Load the model. Blocks. Raises what `load` raises."""
        self._thread.start()
        return self._ready.result()

    def add(
        self,
        key: str,
        sequence: Sequence,
        *,
        ends: tuple[int, ...],
        max_new: int,
        matcher: Matcher | None = None,
    ) -> None:
        """Satisfies `workers.engines.batched.Batcher`."""
        with self._moved:
            self._new.append(_Request(key, sequence, ends, max_new, matcher))
            self._moved.notify()

    def cancel(self, key: str) -> None:
        """Satisfies `workers.engines.batched.Batcher`."""
        with self._moved:
            self._cancelled.add(key)
            self._moved.notify()

    def stop(self, timeout: float) -> None:
        """Satisfies `workers.engines.batched.Batcher`."""
        with self._moved:
            self._stopping = True
            self._moved.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)

    # The rest runs in the thread.

    def _run(self) -> None:
        try:
            self._loaded = self._load()
            self._prefixes = LRUPromptCache(_PREFIXES, self._loaded.spare)
            self._generator = self._new_generator()
        except BaseException as error:  # noqa: BLE001 - raised again by `start`
            self._ready.set_exception(error)
            return
        self._ready.set_result(self._loaded)
        try:
            while self._next():
                self._turn()
            self._generator.close()
        except Exception as error:
            log.exception("mlx-lm cannot go on")
            self._died(f"mlx-lm cannot go on after an error: {error}")
        del self._generator, self._prefixes, self._loaded
        mx.clear_cache()

    def _turn(self) -> None:
        self._on_step()
        try:
            self._forget()
            self._fill()
            self._step()
        except Exception as error:  # mlx raises what it likes, where memory ends above all
            log.exception("a batch failed")
            self._fail(error)

    def _new_generator(self) -> Generator:
        slots = self._loaded.slots
        return BatchGenerator(
            self._loaded.model,
            completion_batch_size=slots,
            prefill_batch_size=slots,
            prefill_step_size=_PREFILL,
        )

    def _next(self) -> bool:
        """Wait for work and take it in; False at the end."""
        with self._moved:
            self._moved.wait_for(
                lambda: (
                    self._stopping or self._new or self._cancelled or self._waiting or self._running
                )
            )
            self._waiting += self._new
            self._new.clear()
            return not self._stopping

    def _forget(self) -> None:
        """Drop what was cancelled."""
        with self._moved:
            cancelled, self._cancelled = self._cancelled, set()
        if cancelled:
            self._waiting = deque(one for one in self._waiting if one.key not in cancelled)
            gone = [number for number, one in self._running.items() if one.key in cancelled]
            self._remove(gone)

    def _remove(self, numbers: list[int]) -> None:
        for number in numbers:
            del self._running[number]
        if numbers:
            self._generator.remove(numbers)

    def _fill(self) -> None:
        while self._waiting and len(self._running) < self._loaded.slots:
            request = self._waiting.popleft()
            try:
                self._begin(request)
            except Exception as error:  # those that run are whole
                log.exception("a sequence could not begin")
                self._post([_failed(request, error)])

    def _begin(self, request: _Request) -> None:
        own = request.sequence.sampling
        if own.prompt_logprobs is not None and not request.sequence.generated:
            tokens = request.sequence.prompt
            with mx.stream(self._generator.stream):
                request.scored = score(self._loaded.model, tokens, own.prompt_logprobs)
            if request.max_new <= 0:
                self._post([(request.key, _only_scored(request))])
                return
        self._insert(request)

    def _insert(self, request: _Request) -> None:
        with mx.stream(self._generator.stream):
            drawing = request.drawing = Drawing(
                request.sequence,
                request.ends,
                request.matcher,
                vocabulary=self._loaded.vocabulary,
            )
        prompt = request.sequence.prompt
        tokens = [*prompt, *request.sequence.generated]
        # The last token is always computed: what follows it is not in the cache.
        cache, rest = self._prefixes.fetch_nearest_cache(_MODEL, tokens[:-1])
        known = len(tokens) - 1 - len(rest)
        request.cached = min(known, len(prompt))
        [number] = self._generator.insert(
            [tokens[known:]],
            caches=[cache],
            all_tokens=[tokens[:known]],
            max_tokens=[request.max_new],
            samplers=[None if drawing.plain else drawing.draw],
            logits_processors=[[] if drawing.plain else [drawing.process]],
            stop_sequences=[StopSequences([[end] for end in request.ends])],
        )
        self._running[number] = request

    def _step(self) -> None:
        if not self._running:
            return
        _, responses = self._generator.next()
        steps = [self._given(response) for response in responses]
        if steps:
            self._post(steps)
        for response, (_, output) in zip(responses, steps, strict=True):  # all of them are told
            if response.finish_reason is not None:
                del self._running[response.uid]
                self._prefixes.insert_cache(_MODEL, response.all_tokens, response.prompt_cache)
            elif output.error is not None:
                self._remove([response.uid])

    def _given(self, response: Any) -> Step:
        request = self._running[response.uid]
        drawing = request.drawing
        assert drawing is not None  # noqa: S101 - it runs
        if drawing.problem is not None:
            return request.key, Output(request.sequence.id, error=drawing.problem)
        wants = request.sequence.sampling.logprobs is not None
        logprobs = (drawing.told(),) if wants else None
        stopped = response.finish_reason == "stop"
        scored, request.scored = request.scored, None
        cached, request.cached = request.cached, None
        return request.key, Output(
            request.sequence.id,
            () if stopped else (response.token,),
            None if stopped else logprobs,
            response.finish_reason,
            cached_tokens=cached,
            prompt_logprobs=scored,
        )

    def _fail(self, error: Exception) -> None:
        lost, self._running = [*self._running.values()], {}
        self._post([_failed(one, error) for one in lost])
        self._generator = self._new_generator()


def _only_scored(request: _Request) -> Output:
    return Output(request.sequence.id, finish="length", prompt_logprobs=request.scored)


def _failed(request: _Request, error: Exception) -> Step:
    problem = EngineError(f"mlx-lm failed while it ran the sequence: {error}")
    return request.key, Output(request.sequence.id, error=problem)
