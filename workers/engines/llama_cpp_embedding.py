"""Vectors of texts from GGUF models on llama.cpp, through the xllamacpp wheel."""

from __future__ import annotations

import asyncio
from array import array
from dataclasses import dataclass
from pathlib import Path

from queueserve.errors import EngineError, InvalidRequestError
from workers.engines import gguf_header, llama_cpp_sizing
from workers.engines.base import EngineInfo, Sink
from workers.engines.fingerprint import fingerprint
from workers.engines.length_batching import LengthBatcher
from workers.engines.llama_cpp_server import LlamaServer
from workers.engines.llama_cpp_tokenizer import LlamaCppTokenizer
from workers.engines.llama_cpp_vocabulary import Vocabulary
from workers.engines.loading import in_daemon_thread
from workers.engines.pooling import GeneratesNothing

_RANK = 4  # llama.cpp's pooling type of a cross-encoder
_ITEMS, _TOKENS = 16, 4096  # of a batch: what nobody awaits any more is dropped between two


def embeds(path: Path) -> bool:
    """Return whether a model gives vectors, and not text. Raises EngineError for a reranker.

    A file that cannot be read is taken to generate; loading it will say what is wrong.
    """
    try:
        header = gguf_header.read_header(path)
    except EngineError:
        return False
    pooling = header.shape("pooling_type", 0)
    if pooling == _RANK:
        raise EngineError(
            "the model scores pairs, which the llama_cpp engine does not do: the transformers "
            "engine runs it from its original files"
        )
    return bool(pooling) or header.shape("attention.causal", default=True) is False


@dataclass(frozen=True, slots=True)
class _Loaded:
    server: LlamaServer
    vocabulary: Vocabulary
    info: EngineInfo
    dimensions: int


class LlamaCppEmbeddingEngine(GeneratesNothing):
    """Satisfies `workers.engines.base.Engine` and `workers.engines.pooling.Embedder`.

    `slots` inputs are computed at once, each of up to `context_length` tokens.
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
        self._path = Path(model_path)
        self._slots = slots
        self._context_length = context_length
        self._threads = threads or llama_cpp_sizing.threads()
        self._gpu_layers = gpu_layers
        self._loaded: _Loaded | None = None
        self._batcher: LengthBatcher[tuple[int, ...], array[float]] | None = None

    @property
    def steps(self) -> int:
        """Satisfies `workers.engines.base.Engine`."""
        return self._batcher.batches if self._batcher else 0

    @property
    def dimensions(self) -> int:
        """Satisfies `workers.engines.pooling.Embedder`."""
        return self._running.dimensions

    @property
    def _running(self) -> _Loaded:
        if self._loaded is None:
            raise EngineError("the engine is not running")
        return self._loaded

    async def start(self, sink: Sink) -> None:
        """Load the model."""
        self._sink = sink
        loaded = self._loaded = await in_daemon_thread(self._load)
        self.info = loaded.info
        self.tokenizer = LlamaCppTokenizer(loaded.server, loaded.vocabulary)
        self._batcher = LengthBatcher(
            loaded.server.embed, length=len, most_items=_ITEMS, most_tokens=_TOKENS
        )

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
            embeds=True,
        )
        info = EngineInfo(
            engine="llama_cpp",
            version=server.version,
            fingerprint=fingerprint(gguf_header.parts(self._path), header.digest),
            context_length=server.context_length,
            slots=server.slots,
            tasks=("embed", "score"),
        )
        [vector] = server.embed([(0,)])
        return _Loaded(server, vocabulary, info, len(vector))

    async def embed(self, inputs: list[tuple[int, ...]]) -> list[array[float]]:
        """Satisfies `workers.engines.pooling.Embedder`."""
        known = len(self._running.vocabulary.pieces)
        unknown = next((token for one in inputs for token in one if not 0 <= token < known), None)
        if unknown is not None:
            raise InvalidRequestError(f"the model has no token {unknown}", param="input")
        if self._batcher is None:
            raise EngineError("the engine is not running")
        return await self._batcher.values(inputs)

    async def close(self) -> None:
        """Give the memory back, once the running batch has ended."""
        batcher, self._batcher = self._batcher, None
        loaded, self._loaded = self._loaded, None
        if batcher is not None:
            await batcher.close()
        if loaded is not None:
            await asyncio.to_thread(loaded.server.close)
