"""The vLLM engine: AsyncLLM in this process, its scheduler and the model in processes of their own.

After each step AsyncLLM sorts the new tokens into a collector per request, for a task per request
to take them from. Here one callback empties all collectors at once, so a step is one call of the
sink whatever runs. This file is the event loop's side; the `vllm_*` modules import vLLM, which
takes seconds, in the thread that loads.
"""

from __future__ import annotations

import asyncio
import os
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from queueserve.errors import EngineError, QueueServeError, WorkerLostError
from queueserve.queue.tasks import Tasks
from workers.engines.base import EngineDiedError, EngineInfo, Output, Sequence, Sink, Tokenizer
from workers.engines.children import Children
from workers.engines.conversion import loadable
from workers.engines.loading import in_daemon_thread
from workers.engines.room import tokens_left

if TYPE_CHECKING:
    from workers.engines.vllm_loading import Loaded

Llm: TypeAlias = Any  # an AsyncLLM: vllm is not followed by mypy
Collector: TypeAlias = Any  # a RequestOutputCollector

_LOOK = 0.5  # seconds between looks whether the engine's process lives
_CLOSE_WITHIN = 10.0  # seconds
_ENVIRONMENT = {
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # this process has threads: a fork may hang
    "VLLM_V1_OUTPUT_PROC_CHUNK_SIZE": "65536",  # a step is never cut in parts
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",  # who wants to send them sets it to 0
}


@dataclass(slots=True)
class _Live:
    """A sequence on its way; without a collector while vLLM has not taken it."""

    sequence: Sequence
    collector: Collector = None
    started: bool = False


class VllmEngine:
    """Satisfies `workers.engines.base.Engine` and `Fallible`, and `pooling.Embedder`.

    `model_path` is a directory, a hub id, or a GGUF file, which is converted once into `cache_dir`.
    `num_gpus` is the degree of tensor parallelism, `adapters` are names and directories of LoRA
    adapters, and `arguments` those of `vllm serve` that configure its engine. By default `slots` is
    vLLM's max_num_seqs, or fewer where its cache holds fewer short sequences.
    """

    info: EngineInfo
    tokenizer: Tokenizer
    steps: int = 0
    _loaded: Loaded  # from start to close

    def __init__(
        self,
        model_path: str,
        *,
        slots: int | None = None,
        context_length: int | None = None,
        dtype: str = "auto",
        revision: str | None = None,
        num_gpus: int | None = None,
        adapters: tuple[tuple[str, Path], ...] = (),
        arguments: tuple[str, ...] = (),
        cache_dir: Path | None = None,
    ) -> None:
        self._model_path = model_path
        self._options: dict[str, object] = {
            "--max-num-seqs": slots,
            "--max-model-len": context_length,
            "--dtype": dtype,
            "--revision": revision,
            "--tensor-parallel-size": num_gpus,
            "--enable-lora": bool(adapters),
            "--max-loras": len(adapters) or None,
        }
        self._adapters = dict(adapters)
        self._arguments = arguments
        self._cache_dir = cache_dir
        self._llm: Llm = None
        self._closed = False
        self._loading = False
        self._live: dict[str, _Live] = {}
        self._sweeping = False
        self._tasks = Tasks()
        self._children = Children()

    async def start(self, sink: Sink) -> None:
        """Satisfies `workers.engines.base.Engine`."""
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        self._loading = True
        tying = self._tasks.start(self._children.watch(), "tie vLLM's processes to this one")
        try:
            await in_daemon_thread(self._load_or_leave)
        finally:
            tying.cancel()
            self._children.tie()

    def _load_or_leave(self) -> None:
        try:
            self._load()
        finally:
            self._loading = False
            if self._closed:
                self._children.release()

    def _load(self) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            from workers.engines import vllm_pooling, vllm_requests  # noqa: PLC0415
            from workers.engines.vllm_loading import load  # noqa: PLC0415
        except ImportError as error:
            raise EngineError(
                f"the vllm engine is not installed ({error}): pip install 'queueserve[vllm]'"
            ) from error
        loaded = load(
            loadable(self._model_path, self._cache_dir),
            self._options,
            adapters=self._adapters,
            arguments=self._arguments,
        )
        if self._closed:  # nobody waits for it any more
            loaded.llm.shutdown()
            return
        self._requests, self._pooling = vllm_requests, vllm_pooling
        self._loaded, self._llm = loaded, loaded.llm
        self.info, self.tokenizer = loaded.info, loaded.tokenizer
        self._hook(loaded.llm)
        del loaded  # something keeps this frame, and vLLM must be gone when the interpreter ends

    def _hook(self, llm: Llm) -> None:
        processor = llm.output_processor
        process = processor.process_outputs

        def process_outputs(*args: Any, **kwargs: Any) -> Any:
            processed = process(*args, **kwargs)
            self.steps += 1
            self._sweep_soon()
            return processed

        processor.process_outputs = process_outputs

    def add(self, sequence: Sequence) -> None:
        """Satisfies `workers.engines.base.Engine`."""
        if self._llm is None:
            raise RuntimeError("the engine is not running")
        self.abort(sequence.id)
        live = self._live[sequence.id] = _Live(sequence)
        self._tasks.start(self._admit(live), f"admit {sequence.id}")

    async def _admit(self, live: _Live) -> None:
        sequence = live.sequence
        try:
            left = self._left(sequence)
            if left <= 0:
                self._end(live, Output(sequence.id, finish="length"))
                return
            await self._check_constraint(sequence)
            live.collector = await self._request(sequence, left)
        except QueueServeError as error:
            self._end(live, Output(sequence.id, error=error))
        except Exception as error:  # noqa: BLE001  # vLLM raises what it likes
            if not self._llm.errored:  # else `lost` says so
                self._end(live, Output(sequence.id, error=self._requests.refusal(sequence, error)))
        else:
            if self._live.get(sequence.id) is not live:  # aborted meanwhile
                await self._llm.abort(live.collector.request_id, internal=True)
            elif live.collector.output is not None:
                self._sweep_soon()

    async def _request(self, sequence: Sequence, left: int) -> Collector:
        loaded = self._loaded
        return await self._llm.add_request(
            sequence.id,
            {"type": "token", "prompt_token_ids": [*sequence.prompt, *sequence.generated]},
            self._requests.parameters(
                sequence,
                left=left,
                ends=loaded.ends,
                seeds_by_position=loaded.seeds_by_position,
            ),
            lora_request=sequence.adapter and loaded.adapters[sequence.adapter],
            priority=sequence.priority if loaded.prioritises else 0,
        )

    async def _check_constraint(self, sequence: Sequence) -> None:
        """Raise what speaks against the sequence's constraint, which vLLM would not always say."""
        if sequence.constraint is None:
            return
        await asyncio.to_thread(
            self._loaded.grammars.matcher, sequence.constraint, sequence.generated
        )
        if sequence.generated:
            raise WorkerLostError("vLLM cannot go on in the middle of a constrained output.")

    def _left(self, sequence: Sequence) -> int:
        """How many tokens may come. Raises what speaks against it."""
        left = tokens_left(sequence, self.info.context_length)
        if sequence.sampling.max_tokens == 0 and sequence.sampling.prompt_logprobs is not None:
            return 1  # which vLLM draws beside the prompt's scores, and nobody gets
        return left

    def _end(self, live: _Live, output: Output) -> None:
        if self._live.get(output.id) is live:
            del self._live[output.id]
            self._sink([output])

    def _sweep_soon(self) -> None:
        """Empty the collectors when this step's outputs are in them, outside vLLM's own task."""
        if not self._sweeping:
            self._sweeping = True
            self._loop.call_soon(self._sweep)

    def _sweep(self) -> None:
        self._sweeping = False
        outputs = []
        for live in list(self._live.values()):
            if live.collector is None or live.collector.output is None:
                continue
            if isinstance(live.collector.output, Exception):
                continue  # vLLM has died: `lost` says so
            output = self._requests.output(
                live.sequence, live.collector.get_nowait(), first=not live.started
            )
            live.started = True
            if output.finish is not None or output.error is not None:
                del self._live[output.id]
            outputs.append(output)
        if outputs:
            self._sink(outputs)

    def abort(self, sequence_id: str) -> None:
        """Satisfies `workers.engines.base.Engine`."""
        live = self._live.pop(sequence_id, None)
        if live is not None and live.collector is not None:
            self._tasks.start(
                self._llm.abort(live.collector.request_id, internal=True), f"abort {sequence_id}"
            )

    @property
    def dimensions(self) -> int:
        """Satisfies `workers.engines.pooling.Embedder`."""
        return int(self._loaded.dimensions)

    async def embed(self, inputs: list[tuple[int, ...]]) -> list[array[float]]:
        """Satisfies `workers.engines.pooling.Embedder`, for a model with the task "embed"."""
        return await self._pooling.embed(self._llm, inputs)

    async def lost(self) -> str:
        """Satisfies `workers.engines.base.Fallible`."""
        while not self._llm.errored:  # noqa: ASYNC110  # vLLM has no event for it
            await asyncio.sleep(_LOOK)
        raise EngineDiedError("vLLM's engine process has ended; what it logged says why")

    async def back(self) -> None:
        """Satisfies `workers.engines.base.Fallible`: what has died stays dead."""

    async def close(self) -> None:
        """Satisfies `workers.engines.base.Engine`."""
        self._closed = True
        self._live.clear()
        await self._tasks.aclose()
        llm, self._llm = self._llm, None
        if llm is not None:
            if llm.output_handler is not None:
                llm.output_handler.cancel()  # else it takes the end for a failure
            await asyncio.to_thread(llm.shutdown, _CLOSE_WITHIN)
            del self._loaded
        if not self._loading:  # else its processes still come; they end with this one
            self._children.release()
