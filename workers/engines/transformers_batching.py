"""The continuous batching manager of transformers, run in one thread, with our sampler in it.

Parts of the manager that are used here are private to transformers, so its minor version is pinned
and the tests cover what is relied on. Above all: the manager builds its batch processor when it
warms up, from the `logit_processor` and the `output_router` that it has by then.
"""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, TypeAlias

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.continuous_api import BackgroundThreadStatus

from queueserve.errors import EngineError
from queueserve.protocol import FinishReason
from workers.engines.base import Output, Sequence
from workers.engines.batched import Step
from workers.engines.grammar import Matcher
from workers.engines.transformers_memory import CacheSize
from workers.engines.transformers_sampling import Drawing, Sampler
from workers.engines.transformers_scoring import score
from workers.engines.transformers_spread import layers_of, processor_of

log = logging.getLogger(__name__)

Model: TypeAlias = Any  # a PreTrainedModel: transformers is not followed by mypy
Post: TypeAlias = Callable[[list[Step]], None]


_RUNNING = BackgroundThreadStatus.DONT_STOP


@dataclass(slots=True)
class _Request:
    """One sequence in the manager. `key` is its id there."""

    key: str
    sequence: str
    drawing: Drawing
    tokens: list[int]  # the manager's prompt: prompt and output so far
    max_new: int
    sent: int = 0  # output tokens already posted
    cached: int | None = None  # prompt tokens found in the cache


class Batcher:
    """Runs the manager until `stop`; a manager that breaks is replaced, its requests fail.

    `post` is called in the thread, once a step, with what the step gave to all requests that moved.
    `on_step` is called in the thread before every forward pass, and `died` with the cause if no
    new manager can be had, which ends the thread. None of them must block.
    """

    def __init__(
        self,
        model: Model,
        size: CacheSize,
        post: Post,
        on_step: Callable[[], None],
        died: Callable[[str], None],
    ) -> None:
        self._model = model
        self._size = size
        self._post = post
        self._on_step = on_step
        self._died = died
        self._requests: dict[str, _Request] = {}
        self._lock = threading.Lock()  # guards manager and requests while one is replaced
        self._manager: Any = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="transformers", daemon=True)

    def start(self) -> None:
        """Take the memory for the cache, run the model once, and start the thread.

        Raises whatever the model, the memory or transformers raise.
        """
        self._manager = self._new_manager()
        self._thread.start()

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
        request = _Request(
            key=key,
            sequence=sequence.id,
            drawing=Drawing(
                sequence.sampling,
                sequence.prompt,
                ends,
                matcher,
                unscored=sequence.sampling.prompt_logprobs is not None and not sequence.generated,
            ),
            tokens=[*sequence.prompt, *sequence.generated],
            max_new=max_new,
        )
        with self._lock:
            self._requests[request.key] = request
            if self._manager is not None:
                self._submit(request)

    def cancel(self, key: str) -> None:
        """Satisfies `workers.engines.batched.Batcher`."""
        with self._lock:
            if self._requests.pop(key, None) is not None and self._manager is not None:
                self._manager.cancel_request(key)

    def stop(self, timeout: float) -> None:
        """Satisfies `workers.engines.batched.Batcher`."""
        with self._lock:
            self._stopping = True
            manager = self._manager
        if manager is not None:
            manager.background_thread_status.request_stop(BackgroundThreadStatus.HARD_STOP, 0)
            manager._wake_up_loop.set()  # noqa: SLF001
        if self._thread.is_alive():
            self._thread.join(timeout)
        self._model = self._manager = None
        _give_memory_back()

    def _submit(self, request: _Request) -> None:
        self._manager.add_request(
            request.tokens,
            request_id=request.key,
            max_new_tokens=max(1, request.max_new),  # 0 where only the prompt is to be scored
            streaming=True,
            eos_token_id=list(request.drawing.ends),
        )

    # The rest runs in the thread; the first manager is made in the one that calls `start`.

    def _new_manager(self) -> Any:
        if self._model.device.type == "cuda":
            torch.cuda.set_device(self._model.device)
        half = self._model.dtype in (torch.float16, torch.bfloat16)
        devices = set(layers_of(self._model).values())
        manager = self._model.init_continuous_batching(
            # Greedy: the sampler decides. An id of -1 means that each request names its own ends.
            generation_config=GenerationConfig(do_sample=False, eos_token_id=-1),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=self._size.page,
                num_blocks=self._size.pages,
                max_batch_tokens=self._size.chunk,
                max_requests_per_batch=self._size.slots,
                auto_switch_to_flash=half,  # it knows no float32
                # The sampler reads the tokens of the step before: no two steps at once, no graphs.
                use_async_batching=False,
                use_cuda_graph=False,
                # Only compared with the cache, and with the memory of the first device.
                max_memory_percent=len(devices) if len(devices) > 1 else None,
            ),
        )
        manager.logit_processor = Sampler(self._drawing, self._on_step, partial(score, self._model))
        manager.output_router = SimpleNamespace(
            deliver_batch=self._deliver, fail_and_deliver=self._give_up
        )
        if len(devices) > 1:
            manager.batch_processor = processor_of(manager)
        manager.warmup()
        self._watch_cache(manager.batch_processor.cache)
        _try_out(manager)
        return manager

    def _drawing(self, key: str) -> Drawing | None:
        request = self._requests.get(key)
        return None if request is None else request.drawing

    def _watch_cache(self, cache: Any) -> None:
        search = cache.search_prefix_match

        def watched(key: str, tokens: list[int]) -> int:
            found: int = search(key, tokens)
            request = self._requests.get(key)
            if request is not None:
                request.cached = min(found, len(request.drawing.prompt))
            return found

        cache.search_prefix_match = watched

    def _run(self) -> None:
        while (manager := self._manager) is not None:
            manager._run_generation_loop()  # noqa: SLF001
            error = manager.background_thread_status.fatal_error
            if error is None:  # it was told to stop
                return
            reason = str(error)
            manager = error = None  # the error's traceback holds the cache, too
            self._replace_manager(reason)

    def _replace_manager(self, reason: str) -> None:
        with self._lock:
            lost = self._take_requests()
            self._manager = None
        self._fail(lost, reason)
        _give_memory_back()
        try:
            manager = self._new_manager()
        except Exception as again:
            log.exception("transformers cannot go on")
            self._died(f"transformers cannot go on after an error ({reason}): {again}")
            return
        with self._lock:
            if not self._stopping:
                self._manager = manager
                for request in self._requests.values():  # they came meanwhile
                    self._submit(request)

    def _take_requests(self) -> list[_Request]:
        taken, self._requests = list(self._requests.values()), {}
        return taken

    def _fail(self, requests: list[_Request], reason: str) -> None:
        if requests:
            self._post([_failed(request, reason) for request in requests])

    def _deliver(self, results: list[Any]) -> None:
        steps = [step for result in results if (step := self._step(result)) is not None]
        if steps:
            self._post(steps)

    def _give_up(self, state: Any, error: Exception) -> None:
        manager = self._manager
        if manager is None or manager.background_thread_status.local_status != _RUNNING:
            return  # all of them go down together, see `_replace_manager`
        request = self._requests.pop(state.request_id, None)
        if request is not None:
            self._fail([request], str(error))

    def _step(self, result: Any) -> Step | None:
        request = self._requests.get(result.request_id)
        over = result.is_finished()
        if request is None:
            manager = self._manager
            if not over and manager is not None:
                # Cancelled in the moment between the manager's look at its two queues.
                manager.cancel_request(result.request_id)
            return None
        if problem := request.drawing.problem:
            self.cancel(request.key)
            return request.key, Output(request.sequence, error=problem)
        if over:
            self._requests.pop(request.key, None)  # a cancel may have been first
        return request.key, _output(request, result.generated_tokens, over=over)


def _output(request: _Request, generated: list[int], *, over: bool) -> Output:
    if request.max_new == 0:
        return Output(
            request.sequence,
            finish="length",
            cached_tokens=request.cached,
            prompt_logprobs=request.drawing.scored,
        )
    tokens = generated[request.sent :]
    finish: FinishReason | None = "length" if over else None
    if over and tokens and tokens[-1] in request.drawing.ends:
        tokens.pop()
        finish = "stop"
    logprobs = None
    if request.drawing.sampling.logprobs is not None:
        logprobs = tuple(request.drawing.logprobs[: len(tokens)])
        request.drawing.logprobs.clear()
    cached = request.cached if request.sent == 0 else None
    request.sent = len(generated)
    scored, request.drawing.scored = request.drawing.scored, None
    return Output(
        request.sequence,
        tuple(tokens),
        logprobs,
        finish,
        cached_tokens=cached,
        prompt_logprobs=scored,
    )


def _failed(request: _Request, reason: str) -> Step:
    problem = EngineError(f"transformers failed while it ran the sequence: {reason}")
    return request.key, Output(request.sequence, error=problem)


def _try_out(manager: Any) -> None:
    """Generate a token, so that a model that cannot run here is found out before it is asked."""
    manager.add_request([0], request_id="try-out", max_new_tokens=1, eos_token_id=[])
    processor = manager.batch_processor
    while processor.prepare_next_batch():
        processor._generation_step(manager.model)  # noqa: SLF001
        processor.update_batch()


def _give_memory_back() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
