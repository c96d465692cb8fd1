"""The llama_cpp engine: GGUF models on llama.cpp, through the xllamacpp wheel.

llama.cpp batches; the engine gives each running sequence a thread that waits for its tokens, and
brings the tokens of all threads to the event loop in as few calls as possible.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from queueserve.errors import ContextLengthExceededError, EngineError, QueueServeError
from workers.engines import gguf_header, llama_cpp_requests, llama_cpp_sizing
from workers.engines.base import EngineInfo, Output, Sequence, Sink
from workers.engines.fingerprint import fingerprint
from workers.engines.grammar import Grammars
from workers.engines.llama_cpp_gathering import Gathering
from workers.engines.llama_cpp_generation import Generation
from workers.engines.llama_cpp_server import LlamaServer
from workers.engines.llama_cpp_tokenizer import LlamaCppTokenizer
from workers.engines.llama_cpp_vocabulary import Vocabulary
from workers.engines.loading import in_daemon_thread

log = logging.getLogger(__name__)

_CLOSING = 10.0  # seconds for the running step to end


@dataclass(slots=True, eq=False)
class _Run:
    sequence: Sequence
    cancelled: bool = False


@dataclass(slots=True)
class _Slot:
    index: int
    tokens: tuple[int, ...] = ()  # what its cache holds


@dataclass(frozen=True, slots=True)
class _Loaded:
    server: LlamaServer
    vocabulary: Vocabulary
    grammars: Grammars
    info: EngineInfo


class LlamaCppEngine:
    """A GGUF model.

    `slots` sequences run at once, each with a context of `context_length` tokens; `threads`
    compute; `gpu_layers` layers are put on the GPU, if llama.cpp was built for one (None: as many
    as fit).
    """

    info: EngineInfo
    tokenizer: LlamaCppTokenizer

    def __init__(
        self,
        model_path: Path | str,
        *,
        slots: int | None = None,
        context_length: int | None = None,
        threads: int | None = None,
        gpu_layers: int | None = None,
    ) -> None:
        self.steps = 0
        self._path = Path(model_path)
        self._slots = slots
        self._context_length = context_length
        self._threads = threads or llama_cpp_sizing.threads()
        self._gpu_layers = gpu_layers
        self._loaded: _Loaded | None = None
        self._runs: dict[str, _Run] = {}  # waiting or running
        self._waiting: deque[_Run] = deque()
        self._idle: list[_Slot] = []  # the one used longest ago first
        self._working: set[Future[None]] = set()

    async def start(self, sink: Sink) -> None:
        """Load the model."""
        self._loop = asyncio.get_running_loop()
        self._sink = sink
        self._gathering = Gathering(self._loop, self._take)
        self._loaded = await in_daemon_thread(self._load)
        self.info = self._loaded.info
        self.tokenizer = LlamaCppTokenizer(self._loaded.server, self._loaded.vocabulary)
        self._idle = [_Slot(index) for index in range(self.info.slots)]
        # Not daemon threads: one that is inside llama.cpp when Python exits aborts the process.
        self._pool = ThreadPoolExecutor(self.info.slots, thread_name_prefix="llama_cpp")

    def _load(self) -> _Loaded:
        header = gguf_header.read_header(self._path)
        vocabulary = Vocabulary.read(header)
        server = LlamaServer(
            self._path,
            header,
            slots=self._slots,
            context=self._context_length,
            threads=self._threads,
            gpu_layers=self._gpu_layers,
        )
        info = EngineInfo(
            engine="llama_cpp",
            scores_prompts=True,
            version=server.version,
            fingerprint=fingerprint(gguf_header.parts(self._path), header.digest),
            context_length=server.context_length,
            slots=server.slots,
        )
        grammars = Grammars(lambda: vocabulary.pieces, server.ends)
        return _Loaded(server, vocabulary, grammars, info)

    def add(self, sequence: Sequence) -> None:
        """Start a sequence, or let it wait for a slot."""
        run = _Run(sequence)
        self._runs[sequence.id] = run
        try:
            self._check(sequence)
        except QueueServeError as error:
            self._gathering.deliver(run, Output(sequence.id, error=error))
            return
        self._waiting.append(run)
        self._fill()

    def _check(self, sequence: Sequence) -> None:
        if self._loaded is None:
            raise EngineError("the engine is not running")
        llama_cpp_requests.check(sequence, len(self._loaded.vocabulary.pieces))
        if len(sequence.prompt) >= self.info.context_length:
            raise ContextLengthExceededError(
                f"the prompt has {len(sequence.prompt)} tokens, and the context is of "
                f"{self.info.context_length}",
                param="prompt",
            )

    def abort(self, sequence_id: str) -> None:
        """Stop a sequence; its thread sees it at its next message from llama.cpp."""
        run = self._runs.pop(sequence_id, None)
        if run is None:
            return
        run.cancelled = True
        self._gathering.leave(run)
        if run in self._waiting:
            self._waiting.remove(run)

    async def close(self) -> None:
        """Stop everything, and give the memory back as soon as the running step has ended."""
        loaded, self._loaded = self._loaded, None
        if loaded is None:
            return
        for sequence_id in list(self._runs):
            self.abort(sequence_id)
        self._pool.shutdown(wait=False)
        working = [asyncio.wrap_future(work) for work in list(self._working)]
        unfinished = (await asyncio.wait(working, timeout=_CLOSING))[1] if working else set()
        if unfinished:
            log.error("llama.cpp does not end its step; its memory stays taken")
            return
        await asyncio.to_thread(loaded.server.close)

    def _fill(self) -> None:
        while self._loaded and self._idle and self._waiting:
            run = self._waiting.popleft()
            wanted = run.sequence.prompt + run.sequence.generated
            # The slot that holds most of the sequence; of equal ones the one used longest ago.
            slot = max(self._idle, key=lambda slot: _common(slot.tokens, wanted))
            self._idle.remove(slot)
            work = self._pool.submit(
                self._work, run, slot, self._generation(run, slot, self._loaded)
            )
            self._working.add(work)
            work.add_done_callback(self._working.discard)

    def _generation(self, run: _Run, slot: _Slot, loaded: _Loaded) -> Generation:
        most = self.info.context_length - len(run.sequence.prompt)
        asked = run.sequence.sampling.max_tokens
        return Generation(
            run.sequence,
            slot=slot.index,
            limit=most if asked is None else min(asked, most),
            server=loaded.server,
            vocabulary=loaded.vocabulary,
            grammars=loaded.grammars,
            emit=partial(self._gathering.deliver, run),
            rest=partial(self._gathering.leave, run),
            cancelled=lambda: run.cancelled or self._loop.is_closed(),
        )

    def _work(self, run: _Run, slot: _Slot, generation: Generation) -> None:
        """Run one sequence, on a thread."""
        sequence = run.sequence
        try:
            generation.run()
        except QueueServeError as error:
            self._gathering.deliver(run, Output(sequence.id, error=error))
        except Exception as error:
            log.exception("a sequence failed")
            reason = EngineError(f"llama_cpp: {error!r}")
            self._gathering.deliver(run, Output(sequence.id, error=reason))
        finally:
            slot.tokens = sequence.prompt + tuple(generation.tokens)
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._freed, slot)

    def _freed(self, slot: _Slot) -> None:
        self._idle.append(slot)
        self._fill()

    def _take(self, items: list[tuple[_Run, Output | None]]) -> None:
        self.steps += 1
        outputs = [output for run, output in items if output is not None and not run.cancelled]
        for output in outputs:
            if output.finish or output.error:
                del self._runs[output.id]
        if outputs:
            self._sink(outputs)


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """How many tokens two sequences begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (mine, its) in pairs if mine != its), min(len(one), len(other)))
