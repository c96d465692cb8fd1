"""Encoders on transformers: vectors of texts, or scores of pairs, on a CPU or one GPU.

This file is the event loop's side; the model is in `transformers_encoder`, and in a thread.
"""

from __future__ import annotations

import asyncio
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any

from queueserve.errors import EngineError, InvalidRequestError
from queueserve.protocol import JobKind
from workers.engines.base import EngineInfo, Sink, Tokenizer
from workers.engines.length_batching import LengthBatcher
from workers.engines.loading import in_daemon_thread, leave_a_core
from workers.engines.pooling import GeneratesNothing, Pair

if TYPE_CHECKING:
    from workers.engines.encoder_batches import Bounds
    from workers.engines.transformers_encoder import Encoder

_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "pytorch_model*.bin"]


class _EncoderEngine(GeneratesNothing):
    """Satisfies `workers.engines.base.Engine`, but it generates nothing.

    `model_path` is a directory or a hub id. By default `slots` are what fills a batch.
    """

    scores: bool
    tasks: tuple[JobKind, ...]
    info: EngineInfo
    tokenizer: Tokenizer
    _bounds: Bounds  # once it is loaded

    def __init__(
        self,
        model_path: str,
        *,
        slots: int | None = None,
        context_length: int | None = None,
        dtype: str = "auto",
        device: str | None = None,
        revision: str | None = None,
        threads: int | None = None,
    ) -> None:
        self._model_path = model_path
        self._slots = slots
        self._context_length = context_length
        self._dtype = dtype
        self._device = device
        self._revision = revision
        self._threads = threads
        self._encoder: Encoder | None = None
        self._batcher: LengthBatcher[Any, Any] | None = None

    @property
    def steps(self) -> int:
        """Satisfies `workers.engines.base.Engine`."""
        return self._batcher.batches if self._batcher else 0

    async def start(self, sink: Sink) -> None:
        """Satisfies `workers.engines.base.Engine`."""
        self._sink = sink
        await in_daemon_thread(self._load)
        encoder, bounds = self._loaded, self._bounds
        self._batcher = LengthBatcher[Any, Any](
            encoder.score if self.scores else encoder.embed,
            length=_length,
            most_items=bounds.items,
            most_tokens=bounds.tokens,
        )

    def _load(self) -> None:
        try:
            import torch  # noqa: PLC0415
            import transformers  # noqa: PLC0415

            from workers.engines.encoder_batches import bounds_of  # noqa: PLC0415
            from workers.engines.transformers_encoder import load_encoder  # noqa: PLC0415
            from workers.engines.transformers_placement import device_of  # noqa: PLC0415
        except ImportError as error:
            raise EngineError(
                f"the transformers engine is not installed ({error}): "
                "pip install 'queueserve[transformers]'"
            ) from error
        if self._threads:
            torch.set_num_threads(self._threads)
        else:
            leave_a_core(torch)
        device_of(self._device)  # what is not here is told before anything is fetched
        try:
            encoder = load_encoder(
                self._directory(),
                scores=self.scores,
                dtype=self._dtype,
                device=self._device,
                context=self._context_length,
            )
        except EngineError:
            raise
        except Exception as error:  # transformers, torch and safetensors raise what they like
            raise EngineError(f"transformers cannot load {self._model_path}: {error}") from error
        self._encoder = encoder
        self._bounds = bounds_of(encoder.model, encoder.context)
        self.tokenizer = encoder.tokenizer
        self.info = EngineInfo(
            engine="transformers",
            version=transformers.__version__,
            fingerprint=encoder.fingerprint,
            context_length=encoder.context,
            slots=self._slots or self._bounds.slots,
            tasks=self.tasks,
        )

    def _directory(self) -> Path:
        path = Path(self._model_path)
        if path.is_dir():
            return path
        from huggingface_hub import snapshot_download  # noqa: PLC0415 - comes with transformers

        found: str = snapshot_download(
            self._model_path, revision=self._revision, allow_patterns=_FILES
        )
        return Path(found)

    @property
    def _loaded(self) -> Encoder:
        if self._encoder is None:
            raise EngineError("the model is not loaded")
        return self._encoder

    async def _values(self, items: list[Any]) -> list[Any]:
        if self._batcher is None:
            raise EngineError("the engine is not running")
        return await self._batcher.values(items)

    async def close(self) -> None:
        """Satisfies `workers.engines.base.Engine`."""
        batcher, self._batcher, self._encoder = self._batcher, None, None
        if batcher is not None:
            await batcher.close()


class EmbeddingEngine(_EncoderEngine):
    """Satisfies `workers.engines.pooling.Embedder`, too."""

    scores = False
    tasks = ("embed", "score")

    @property
    def dimensions(self) -> int:
        """Satisfies `workers.engines.pooling.Embedder`."""
        return self._loaded.dimensions

    async def embed(self, inputs: list[tuple[int, ...]]) -> list[array[float]]:
        """Satisfies `workers.engines.pooling.Embedder`."""
        known = self._loaded.vocabulary
        unknown = next((token for one in inputs for token in one if token >= known), None)
        if unknown is not None:  # it would break the whole batch, and on a GPU the process
            raise InvalidRequestError(f"the model has no token {unknown}", param="input")
        vectors: list[array[float]] = await self._values(inputs)
        return vectors


class ScoringEngine(_EncoderEngine):
    """Satisfies `workers.engines.pooling.Scorer`, too."""

    scores = True
    tasks = ("score",)

    async def pair(self, query: str, text: str, *, limit: int | None) -> Pair:
        """Satisfies `workers.engines.pooling.Scorer`."""
        return await asyncio.to_thread(self._loaded.pair, query, text, limit)

    async def score(self, pairs: list[Pair]) -> list[float]:
        """Satisfies `workers.engines.pooling.Scorer`."""
        scores: list[float] = await self._values(pairs)
        return scores


def _length(item: tuple[int, ...] | Pair) -> int:
    return len(item.tokens if isinstance(item, Pair) else item)
