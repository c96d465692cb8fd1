"""The transformers engine: any causal language model that transformers knows, on a CPU or one GPU.

Sequences join and leave a running batch through transformers' own continuous batching, with a paged
cache and shared prefixes. This file is the event loop's side; the heavy imports, the model and the
batching are in the `transformers_*` modules, and in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from queueserve.errors import (
    ContextLengthExceededError,
    EngineError,
    InvalidRequestError,
    QueueServeError,
)
from queueserve.queue.tasks import Tasks
from workers.engines.base import (
    EngineInfo,
    Output,
    Sequence,
    Sink,
    Tokenizer,
)
from workers.engines.conversion import converted, default_cache_dir
from workers.engines.grammar import Grammars, Matcher
from workers.engines.loading import in_daemon_thread, leave_a_core
from workers.engines.weights import Bits, Weights

if TYPE_CHECKING:
    from workers.engines.transformers_batching import Batcher, Step

log = logging.getLogger(__name__)

_CLOSE_WITHIN = 10.0  # seconds


class TransformersEngine:
    """Satisfies `workers.engines.base.Engine`.

    `model_path` is a directory, a hub id, or a GGUF file, which is converted once into `cache_dir`.
    By default `slots` is 8 on a CPU and 32 on a GPU, and `context_length` the model's own, or what
    the memory holds. How exactly, and where, the weights are held is said as in `Weights`.
    """

    info: EngineInfo
    tokenizer: Tokenizer
    steps: int = 0

    def __init__(
        self,
        model_path: str,
        *,
        slots: int | None = None,
        context_length: int | None = None,
        dtype: str = "auto",
        device: str | None = None,
        bits: Bits | None = None,
        max_gpu_memory: str | None = None,
        cpu_offloading: bool = False,
        revision: str | None = None,
        cache_dir: Path | None = None,
    ) -> None:
        self._model_path = model_path
        self._slots = slots
        self._context_length = context_length
        self._weights = Weights(
            dtype=dtype,
            device=device,
            bits=bits,
            max_gpu_memory=max_gpu_memory,
            cpu_offloading=cpu_offloading,
        )
        self._revision = revision
        self._cache_dir = cache_dir
        self._batcher: Batcher | None = None
        self._closed = False
        self._live: dict[str, str] = {}  # sequence → its key in the batcher
        self._numbers = itertools.count()
        self._ends: frozenset[int] = frozenset()
        self._vocabulary = range(0)
        self._tasks = Tasks()

    async def start(self, sink: Sink) -> None:
        """Satisfies `workers.engines.base.Engine`."""
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        await in_daemon_thread(self._load)

    def _load(self) -> None:
        try:
            import torch  # noqa: PLC0415
            import transformers  # noqa: PLC0415

            from workers.engines.transformers_batching import Batcher  # noqa: PLC0415
            from workers.engines.transformers_loading import load  # noqa: PLC0415
            from workers.engines.transformers_memory import choose  # noqa: PLC0415
        except ImportError as error:
            raise EngineError(
                f"the transformers engine is not installed ({error}): "
                "pip install 'queueserve[transformers]'"
            ) from error
        leave_a_core(torch)
        loaded = load(self._directory(), revision=self._revision, weights=self._weights)
        try:
            size = choose(loaded.model, slots=self._slots, context=self._context_length)
            batcher = Batcher(loaded.model, size, self._post, self._count_step)
            batcher.start()
        except EngineError:
            raise
        except Exception as error:  # transformers raises what it likes
            raise EngineError(f"transformers cannot run {self._model_path}: {error}") from error
        self._batcher = batcher
        if self._closed:  # nobody waits for it any more
            batcher.stop(_CLOSE_WITHIN)
            return
        self._ends = loaded.ends
        self._vocabulary = range(loaded.model.config.get_text_config().vocab_size)
        self.tokenizer = loaded.tokenizer
        pieces = partial(loaded.tokenizer.pieces, len(self._vocabulary))
        self._grammars = Grammars(pieces, loaded.ends)
        self.info = EngineInfo(
            engine="transformers",
            scores_prompts=True,
            version=transformers.__version__,
            fingerprint=loaded.fingerprint,
            context_length=size.context,
            slots=size.slots,
        )

    def _directory(self) -> str:
        path = Path(self._model_path)
        if path.suffix == ".gguf":
            return str(converted(path, self._cache_dir or default_cache_dir()))
        if not path.is_dir() and (path.is_absolute() or self._model_path.startswith(".")):
            raise EngineError(f"there is no directory {path}")  # else it is an id on the hub
        return self._model_path

    def add(self, sequence: Sequence) -> None:
        """Satisfies `workers.engines.base.Engine`."""
        if self._batcher is None:
            raise RuntimeError("the engine is not running")
        self.abort(sequence.id)
        key = self._live[sequence.id] = f"{next(self._numbers)}:{sequence.id}"
        room = self.info.context_length - len(sequence.prompt)
        problem = self._problem(sequence, room)
        if problem is not None:
            self._loop.call_soon(self._emit, [(key, Output(sequence.id, error=problem))])
            return
        wanted = sequence.sampling.max_tokens
        left = (room if wanted is None else min(room, wanted)) - len(sequence.generated)
        scores = sequence.sampling.prompt_logprobs is not None and not sequence.generated
        if left <= 0 and not scores:
            self._loop.call_soon(self._emit, [(key, Output(sequence.id, finish="length"))])
            return
        # A constraint always ends with one of the model's own ends, when nothing else is left.
        own = self._ends if sequence.constraint or not sequence.sampling.ignore_eos else frozenset()
        ends = tuple(own.union(sequence.sampling.stop_token_ids))
        if sequence.constraint is None:
            self._batcher.add(key, sequence, ends=ends, max_new=left)
            return
        compile_ = partial(self._grammars.matcher, sequence.constraint, sequence.generated)
        start = partial(self._batcher.add, key, sequence, ends=ends, max_new=left)
        self._tasks.start(self._constrained(key, sequence, compile_, start), f"compile {key}")

    async def _constrained(
        self,
        key: str,
        sequence: Sequence,
        compile_: Callable[[], Matcher],
        start: Callable[..., None],
    ) -> None:
        try:
            matcher = await asyncio.to_thread(compile_)
        except QueueServeError as error:
            self._emit([(key, Output(sequence.id, error=error))])
            return
        except Exception as error:  # the sequence must hear of it
            log.exception("a constraint could not be compiled")
            problem = EngineError(f"llguidance: {error!r}")
            self._emit([(key, Output(sequence.id, error=problem))])
            return
        if self._live.get(sequence.id) == key and self._batcher is not None:
            start(matcher=matcher)

    def _problem(self, sequence: Sequence, room: int) -> QueueServeError | None:
        if not sequence.prompt:
            return InvalidRequestError("the prompt is empty", param="prompt")
        if room <= 0:
            return ContextLengthExceededError(
                f"the prompt has {len(sequence.prompt)} tokens, but the model's context is "
                f"{self.info.context_length} tokens, and the answer must fit in it too",
                param="messages",
            )
        named = {
            "prompt": {*sequence.prompt, *sequence.generated},
            "logit_bias": sequence.sampling.logit_bias,
            "stop_token_ids": sequence.sampling.stop_token_ids,
        }
        for param, tokens in named.items():
            # One token that the model has no row for would break the whole batch.
            unknown = next((token for token in tokens if token not in self._vocabulary), None)
            if unknown is not None:
                return InvalidRequestError(f"the model has no token {unknown}", param=param)
        return None

    def abort(self, sequence_id: str) -> None:
        """Satisfies `workers.engines.base.Engine`."""
        key = self._live.pop(sequence_id, None)
        if key is not None and self._batcher is not None:
            self._batcher.cancel(key)

    async def close(self) -> None:
        """Satisfies `workers.engines.base.Engine`."""
        self._closed = True
        self._live.clear()
        await self._tasks.aclose()
        batcher, self._batcher = self._batcher, None
        if batcher is not None:
            await asyncio.to_thread(batcher.stop, _CLOSE_WITHIN)

    # These two are called in the batcher's thread.

    def _count_step(self) -> None:
        self.steps += 1

    def _post(self, steps: list[Step]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._emit, steps)

    def _emit(self, steps: list[Step]) -> None:
        outputs = []
        for key, output in steps:
            if self._live.get(output.id) != key:
                continue  # aborted while this was on its way
            if output.finish is not None or output.error is not None:
                del self._live[output.id]
            outputs.append(output)
        if outputs:
            self._sink(outputs)
