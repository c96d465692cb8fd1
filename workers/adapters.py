"""The engines: what an operator may say about them, and how each is made."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from queueserve.errors import EngineError
from workers.defaults import Defaults
from workers.engines.base import Engine
from workers.engines.encoder_files import use_of_model
from workers.engines.weights import Bits

log = logging.getLogger(__name__)

_API_KEYS = ("QUEUESERVE_API_BASE_KEY", "OPENAI_API_KEY")  # environment; never an option


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model and the engine for it."""

    path: str  # what the engine opens: a file, a directory or a hub id; "" for the fake engine
    origin: str  # the model path as it was given; its card may name a chat template
    engine: str  # a key of `ADAPTERS`
    name: str  # what clients call it, unless --model-names says otherwise
    sampling: Defaults = field(default_factory=dict)  # what its makers recommend


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What an operator may say about an engine; None leaves the choice to it.

    What an engine has no use for is told and then ignored, as a worker may have several engines.
    """

    slots: int | None = None  # sequences at once
    context_length: int | None = None  # tokens of prompt and output together, for one sequence
    dtype: str = "auto"
    device: str | None = None
    bits: Bits | None = None  # quantise the weights
    max_gpu_memory: str | None = None  # of weights on each, as in "10GiB"; the rest is offloaded
    cpu_offloading: bool = False  # weights may wait in the machine's memory
    revision: str | None = None  # of a hub id
    threads: int | None = None
    data_dir: Path | None = None  # where converted weights are kept
    num_gpus: int | None = None  # that share one model
    gpu_layers: int | None = None  # on the GPU; the processor has the rest
    adapters: tuple[tuple[str, Path], ...] = ()  # LoRA: names and directories
    arguments: tuple[str, ...] = ()  # the engine's own, as on its command line
    api_base: str | None = None  # of the server behind the openai engine
    tick: float = 0.02  # seconds a step of the fake engine takes

    @property
    def cache_dir(self) -> Path | None:
        """Where engines that load weights in a form of their own keep it."""
        return self.data_dir and self.data_dir / "models"


_UNSAID = EngineOptions()
_OPTIONAL = {
    "dtype": "--dtype",
    "device": "--device",
    "bits": "--load-8bit and --load-4bit",
    "max_gpu_memory": "--max-gpu-memory",
    "cpu_offloading": "--cpu-offloading",
    "revision": "--revision",
    "threads": "--threads",
    "num_gpus": "--num-gpus",
    "gpu_layers": "--gpu-layers",
    "api_base": "--api-base",
}
"""Fields of `EngineOptions` that not every engine looks at, and what an operator calls them."""


def _tell_unused(source: ModelSource, options: EngineOptions, *, uses: frozenset[str]) -> None:
    for name, called in _OPTIONAL.items():
        if name not in uses and getattr(options, name) != getattr(_UNSAID, name):
            log.warning("%s: %s has no use for %s", source.name, source.engine, called)


def _fake(_source: ModelSource, options: EngineOptions) -> Engine:
    from workers.engines.fake import FakeEngine  # noqa: PLC0415

    return FakeEngine(
        slots=options.slots or 8,
        context_length=options.context_length or 4096,
        tick=options.tick,
    )


def _llama_cpp(source: ModelSource, options: EngineOptions) -> Engine:
    from workers.engines.llama_cpp import LlamaCppEngine  # noqa: PLC0415
    from workers.engines.llama_cpp_embedding import LlamaCppEmbeddingEngine, embeds  # noqa: PLC0415

    made = LlamaCppEmbeddingEngine if embeds(Path(source.path)) else LlamaCppEngine
    return made(
        source.path,
        slots=options.slots,
        context_length=options.context_length,
        threads=options.threads,
        gpu_layers=options.gpu_layers,
    )


def _transformers(source: ModelSource, options: EngineOptions) -> Engine:
    use = use_of_model(source.path, options.revision)
    if use != "generate":
        encoders = frozenset({"dtype", "device", "revision", "threads", "num_gpus"})
        _tell_unused(source, options, uses=encoders)
        return _encoder(source, options, scores=use == "score")
    from workers.engines.transformers import TransformersEngine  # noqa: PLC0415

    _tell_unused(source, options, uses=frozenset(_OPTIONAL) - {"threads", "gpu_layers", "api_base"})
    return TransformersEngine(
        source.path,
        slots=options.slots,
        context_length=options.context_length,
        dtype=options.dtype,
        device=options.device,
        bits=options.bits,
        num_gpus=options.num_gpus or 1,
        max_gpu_memory=options.max_gpu_memory,
        cpu_offloading=options.cpu_offloading,
        revision=options.revision,
        cache_dir=options.cache_dir,
    )


def _mlx(source: ModelSource, options: EngineOptions) -> Engine:
    from workers.engines.mlx import MlxEngine  # noqa: PLC0415

    return MlxEngine(
        source.path,
        slots=options.slots,
        context_length=options.context_length,
        dtype=options.dtype,
        revision=options.revision,
        cache_dir=options.cache_dir,
    )


def _vllm(source: ModelSource, options: EngineOptions) -> Engine:
    from workers.engines.vllm import VllmEngine  # noqa: PLC0415

    return VllmEngine(
        source.path,
        slots=options.slots,
        context_length=options.context_length,
        dtype=options.dtype,
        revision=options.revision,
        num_gpus=options.num_gpus,
        adapters=options.adapters,
        arguments=options.arguments,
        cache_dir=options.cache_dir,
    )


def _sglang(source: ModelSource, options: EngineOptions) -> Engine:
    from workers.engines.sglang import SglangEngine  # noqa: PLC0415

    return SglangEngine(
        source.path,
        slots=options.slots,
        context_length=options.context_length,
        dtype=options.dtype,
        revision=options.revision,
        num_gpus=options.num_gpus,
        adapters=options.adapters,
        arguments=options.arguments,
        cache_dir=options.cache_dir,
    )


def _encoder(source: ModelSource, options: EngineOptions, *, scores: bool) -> Engine:
    if (options.num_gpus or 1) > 1:
        raise EngineError("an encoder runs on one GPU: --num-gpus is for models that generate")
    from workers.engines.transformers_embedding import (  # noqa: PLC0415
        EmbeddingEngine,
        ScoringEngine,
    )

    return (ScoringEngine if scores else EmbeddingEngine)(
        source.path,
        slots=options.slots,
        context_length=options.context_length,
        dtype=options.dtype,
        device=options.device,
        revision=options.revision,
        threads=options.threads,
    )


def _openai(source: ModelSource, options: EngineOptions) -> Engine:
    from workers.engines.openai import OpenAIEngine  # noqa: PLC0415

    return OpenAIEngine(
        source.path,
        api_base=checked_api_base(options.api_base),
        api_key=_api_key(),
        slots=options.slots,
        context_length=options.context_length,
    )


def _api_key() -> str | None:
    """Return the first key that is given. Raises EngineError for one that no header can carry.

    Only its name is told: httpx would quote the key itself.
    """
    for name in _API_KEYS:
        if key := os.environ.get(name, "").strip():  # of a file, a line's end often comes along
            if not (key.isascii() and key.isprintable()):
                raise EngineError(f"{name} has characters that a key cannot have")
            return key
    return None


def checked_api_base(url: str | None) -> str:
    """Return the base URL; /v1 is added to one without a path. Raises EngineError."""
    parts = urlsplit(url or "")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise EngineError("--engine openai needs --api-base, as in http://127.0.0.1:8001/v1")
    return parts._replace(path="/v1").geturl() if parts.path in ("", "/") else parts.geturl()


@dataclass(frozen=True, slots=True)
class Adapter:
    """An engine: how it is made, and what must be installed for it."""

    make: Callable[[ModelSource, EngineOptions], Engine]
    modules: tuple[str, ...] = ()
    uses: frozenset[str] = frozenset()  # keys of `_OPTIONAL`
    extra: str = ""
    takes_arguments: bool = False
    takes_adapters: bool = False


ADAPTERS = {
    "fake": Adapter(_fake),
    "llama_cpp": Adapter(
        _llama_cpp, ("xllamacpp",), frozenset({"threads", "gpu_layers"}), "llama-cpp"
    ),
    "mlx": Adapter(_mlx, ("mlx_lm",), frozenset({"dtype", "revision"}), "mlx"),
    "openai": Adapter(_openai, uses=frozenset({"api_base"})),
    "sglang": Adapter(
        _sglang,
        ("sglang",),
        frozenset({"dtype", "revision", "num_gpus"}),
        "sglang",
        takes_arguments=True,
        takes_adapters=True,
    ),
    "transformers": Adapter(
        _transformers,
        ("torch", "transformers"),
        frozenset(_OPTIONAL),  # it tells by itself, as its encoders use less
        "transformers",
    ),
    "vllm": Adapter(
        _vllm,
        ("vllm",),
        frozenset({"dtype", "revision", "num_gpus"}),
        "vllm",
        takes_arguments=True,
        takes_adapters=True,
    ),
}


def make_engine(source: ModelSource, options: EngineOptions) -> Engine:
    """Return the engine, not started. Imports its adapter and no other. Raises EngineError."""
    adapter = ADAPTERS[source.engine]
    if options.arguments and not adapter.takes_arguments:
        unknown = " ".join(options.arguments)
        raise EngineError(f"the {source.engine} engine takes no arguments of its own: {unknown}")
    if options.adapters and not adapter.takes_adapters:
        raise EngineError(f"the {source.engine} engine takes no --lora-modules; vllm and sglang do")
    _tell_unused(source, options, uses=adapter.uses)
    return adapter.make(source, options)
