"""The SGLang engine: its Engine in a thread of this process, its scheduler in others.

The contract passes on SGLang 0.5.23 on a CPU, where seeds cannot count and log-probabilities come
after biases. On a GPU a part of it has run (docs/engines.md).

The adapter has a thread and an event loop of its own, for three reasons: on the main thread SGLang
takes the signals of this process for itself; its processes end with the thread that started them
(PR_SET_PDEATHSIG); and what it does for each request leaves our event loop free. This file passes
sequences to that thread and outputs back; `sglang_*` is what runs there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from array import array
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from queueserve.errors import EngineError
from queueserve.queue.tasks import Tasks
from workers.engines.base import EngineDiedError, EngineInfo, Output, Sequence, Sink, Tokenizer
from workers.engines.children import Children
from workers.engines.conversion import loadable

if TYPE_CHECKING:
    from workers.engines.sglang_serving import Serving

_CLOSE_WITHIN = 70.0  # seconds; SGLang waits up to 60 for its processes to end
_ENVIRONMENT = {"SGLANG_RETURN_ORIGINAL_LOGPROB": "1"}  # log-probabilities before the temperature


class SglangEngine:
    """Satisfies `workers.engines.base.Engine` and `Fallible`, and `pooling.Embedder`.

    `model_path` is a directory, a hub id, or a GGUF file, which is converted once into `cache_dir`.
    `num_gpus` is the degree of tensor parallelism, `adapters` are names and directories of LoRA
    adapters, and `arguments` those of SGLang's server that configure its engine. One of these can
    live in a process, as SGLang keeps its settings in global variables.
    """

    info: EngineInfo
    tokenizer: Tokenizer
    steps: int = 0

    _taken = False  # whether this process has one
    # Kept, as is all that their tracebacks hold: if what a load leaves of SGLang were collected,
    # ZeroMQ would wait there, in whatever thread, for sockets that are closed only later.
    _failures: ClassVar[list[BaseException]] = []

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
            "--max-running-requests": slots,
            "--context-length": context_length,
            "--dtype": dtype,
            "--revision": revision,
            "--tp-size": num_gpus,
        }
        self._adapters = dict(adapters)
        self._arguments = arguments
        self._cache_dir = cache_dir
        self._serving: Serving | None = None
        self._holds = False  # the one place for SGLang in this process
        self._closed = False
        self._live: dict[str, tuple[Sequence, Future[None]]] = {}
        self._died = asyncio.Event()
        self._tasks = Tasks()
        self._children: Children  # from start
        self._thread: threading.Thread | None = None

    async def start(self, sink: Sink) -> None:
        """Satisfies `workers.engines.base.Engine`."""
        if SglangEngine._taken:
            raise EngineError("SGLang runs one model in a process: start a worker for each")
        SglangEngine._taken = self._holds = True
        self._children = Children()
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        # A process of SGLang that fails, and the thread that watches them, send this signal.
        self._loop.add_signal_handler(signal.SIGQUIT, self._died.set)
        ready: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="sglang", daemon=True)
        tying = self._tasks.start(self._children.watch(), "tie SGLang's processes to this one")
        self._thread.start()
        try:
            await ready
        finally:
            tying.cancel()
            self._children.tie()

    def _run(self, ready: asyncio.Future[None]) -> None:
        """Load, and be SGLang's event loop until `close`: all of the thread."""

        def settle(serving: Serving | None, error: EngineError | None) -> None:
            if serving is None:
                self._children.end()
                self._release()
            elif self._closed:  # nobody waits for it any more
                serving.stop()
            else:
                self._serving = serving
            if ready.cancelled():
                return
            if error is None:
                ready.set_result(None)
            else:
                ready.set_exception(error)

        serving, error = None, None
        try:
            serving = self._load()
        except BaseException as problem:  # noqa: BLE001  # SGLang may also call sys.exit
            SglangEngine._failures.append(problem)
            if isinstance(problem, EngineError):
                error = problem
            else:
                error = EngineError(f"SGLang cannot start: {problem}")
        with contextlib.suppress(RuntimeError):  # our loop is closed: this process is at its end
            self._loop.call_soon_threadsafe(settle, serving, error)
            if serving is not None:
                serving.run()
                self._loop.call_soon_threadsafe(self._release)

    def _load(self) -> Serving:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            from workers.engines.sglang_loading import load  # noqa: PLC0415
            from workers.engines.sglang_serving import Serving  # noqa: PLC0415
        except ImportError as error:
            raise EngineError(
                f"the sglang engine is not installed ({error}): pip install 'queueserve[sglang]'"
            ) from error
        loaded = load(
            loadable(self._model_path, self._cache_dir),
            self._options,
            adapters=self._adapters,
            arguments=self._arguments,
        )
        self.info, self.tokenizer = loaded.info, loaded.tokenizer
        return Serving(loaded, self._step)

    def _release(self) -> None:
        """Make room for another one in this process. Idempotent."""
        if self._holds:
            self._holds = SglangEngine._taken = False
            self._loop.remove_signal_handler(signal.SIGQUIT)
            self._children.release()

    def _step(self, given: list[tuple[Sequence, Output]]) -> None:
        """Take what one step gave, in SGLang's thread."""
        with contextlib.suppress(RuntimeError):  # our loop is closed
            self._loop.call_soon_threadsafe(self._deliver, given)

    def _deliver(self, given: list[tuple[Sequence, Output]]) -> None:
        self.steps += 1
        outputs = []
        for sequence, output in given:
            live = self._live.get(output.id)
            if live is None or live[0] is not sequence:
                continue  # aborted meanwhile
            if output.finish is not None or output.error is not None:
                del self._live[output.id]
            outputs.append(output)
        if outputs:
            self._sink(outputs)

    def add(self, sequence: Sequence) -> None:
        """Satisfies `workers.engines.base.Engine`."""
        serving = self._running()
        self.abort(sequence.id)
        self._live[sequence.id] = sequence, serving.submit(serving.generate(sequence))

    def _running(self) -> Serving:
        if self._serving is None:
            raise RuntimeError("the engine is not running")
        return self._serving

    def abort(self, sequence_id: str) -> None:
        """Satisfies `workers.engines.base.Engine`."""
        live = self._live.pop(sequence_id, None)
        if live is not None:
            live[1].cancel()  # SGLang's generator aborts its request when it is cancelled

    @property
    def dimensions(self) -> int:
        """Satisfies `workers.engines.pooling.Embedder`."""
        return 0 if self._serving is None else self._serving.dimensions

    async def embed(self, inputs: list[tuple[int, ...]]) -> list[array[float]]:
        """Satisfies `workers.engines.pooling.Embedder`, for a model with the task "embed"."""
        serving = self._running()
        return await asyncio.wrap_future(serving.submit(serving.embed(inputs)))

    async def lost(self) -> str:
        """Satisfies `workers.engines.base.Fallible`."""
        await self._died.wait()
        raise EngineDiedError("a process of SGLang has ended; what it logged says why")

    async def back(self) -> None:
        """Satisfies `workers.engines.base.Fallible`: what has died stays dead."""

    async def close(self) -> None:
        """Satisfies `workers.engines.base.Engine`."""
        self._closed = True
        self._live.clear()
        await self._tasks.aclose()
        serving, self._serving = self._serving, None
        if serving is None:
            if self._holds:
                self._children.end()  # then what still loads fails, and its thread ends
            return
        serving.stop()  # then the thread ends all children of this process, and itself
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, _CLOSE_WITHIN)
        self._release()
