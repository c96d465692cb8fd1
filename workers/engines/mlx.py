"""The mlx engine: language models on Apple silicon through mlx-lm, or on a CPU.

Run on MLX's Linux build for CPUs only, where it passes the contract; never run on a Mac.
"""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

from queueserve.errors import EngineError
from workers.engines.base import EngineInfo, Sink
from workers.engines.batched import BatchedEngine
from workers.engines.conversion import directory_or_hub_id
from workers.engines.grammar import Grammars
from workers.engines.loading import in_daemon_thread


class MlxEngine(BatchedEngine):
    """Satisfies `workers.engines.base.Engine`.

    `model_path` is a directory, a hub id, or a GGUF file, which is converted once into `cache_dir`.
    By default `slots` and `context_length` are what the memory holds: up to 8 slots on a CPU and 32
    on a GPU, and the model's own context.
    """

    def __init__(
        self,
        model_path: str,
        *,
        slots: int | None = None,
        context_length: int | None = None,
        dtype: str = "auto",
        revision: str | None = None,
        cache_dir: Path | None = None,
    ) -> None:
        super().__init__()
        self._model_path = model_path
        self._slots = slots
        self._context_length = context_length
        self._dtype = dtype
        self._revision = revision
        self._cache_dir = cache_dir

    async def start(self, sink: Sink) -> None:
        """Satisfies `workers.engines.base.Engine`."""
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        await in_daemon_thread(self._load)

    def _load(self) -> None:
        try:
            import mlx_lm  # noqa: PLC0415

            from workers.engines.mlx_batching import MlxBatcher  # noqa: PLC0415
            from workers.engines.mlx_loading import load  # noqa: PLC0415
        except ImportError as error:
            raise EngineError(
                f"the mlx engine is not installed ({error}): pip install 'queueserve[mlx]'"
            ) from error
        make = partial(
            load,
            directory_or_hub_id(self._model_path, self._cache_dir),
            revision=self._revision,
            dtype=self._dtype,
            slots=self._slots,
            context=self._context_length,
        )
        batcher = MlxBatcher(make, self._post, self._count_step, self._died)
        loaded = batcher.start()
        if not self._ready(batcher):
            return
        self._ends = loaded.ends
        self._vocabulary = range(loaded.vocabulary)
        self.tokenizer = loaded.tokenizer
        self._grammars = Grammars(partial(loaded.tokenizer.pieces, loaded.vocabulary), loaded.ends)
        self.info = EngineInfo(
            engine="mlx",
            scores_prompts=True,
            version=mlx_lm.__version__,
            fingerprint=loaded.fingerprint,
            context_length=loaded.context,
            slots=loaded.slots,
        )
