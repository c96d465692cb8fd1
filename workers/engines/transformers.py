"""The transformers engine: any causal language model that transformers knows, on a CPU or on GPUs.

Sequences join and leave a running batch through transformers' own continuous batching, with a paged
cache and shared prefixes. This file is the event loop's side; the heavy imports, the model and the
batching are in the `transformers_*` modules, and in a thread.
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
from workers.engines.loading import in_daemon_thread, leave_a_core
from workers.engines.weights import Bits, Weights


class TransformersEngine(BatchedEngine):
    """Satisfies `workers.engines.base.Engine`.

    `model_path` is a directory, a hub id, or a GGUF file, which is converted once into `cache_dir`.
    By default `slots` is 8 for each thread on a CPU and 32 on a GPU, and `context_length` the
    model's own, or what the memory holds. How exactly, and where, the weights are held is said as
    in `Weights`.
    """

    def __init__(
        self,
        model_path: str,
        *,
        slots: int | None = None,
        context_length: int | None = None,
        dtype: str = "auto",
        device: str | None = None,
        bits: Bits | None = None,
        num_gpus: int = 1,
        max_gpu_memory: str | None = None,
        cpu_offloading: bool = False,
        revision: str | None = None,
        cache_dir: Path | None = None,
    ) -> None:
        super().__init__()
        self._model_path = model_path
        self._slots = slots
        self._context_length = context_length
        self._weights = Weights(
            dtype=dtype,
            device=device,
            bits=bits,
            num_gpus=num_gpus,
            max_gpu_memory=max_gpu_memory,
            cpu_offloading=cpu_offloading,
        )
        self._revision = revision
        self._cache_dir = cache_dir

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
            from workers.engines.transformers_placement import check  # noqa: PLC0415
        except ImportError as error:
            raise EngineError(
                f"the transformers engine is not installed ({error}): "
                "pip install 'queueserve[transformers]'"
            ) from error
        leave_a_core(torch)
        check(self._weights)  # converting takes minutes
        directory = directory_or_hub_id(self._model_path, self._cache_dir)
        loaded = load(directory, revision=self._revision, weights=self._weights)
        try:
            size = choose(loaded.model, slots=self._slots, context=self._context_length)
            batcher = Batcher(loaded.model, size, self._post, self._count_step, self._died)
            batcher.start()
        except EngineError:
            raise
        except Exception as error:  # transformers raises what it likes
            raise EngineError(f"transformers cannot run {self._model_path}: {error}") from error
        if not self._ready(batcher):
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
