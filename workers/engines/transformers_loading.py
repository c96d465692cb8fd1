"""From a path or a hub id to a model in memory, its tokenizer and its fingerprint."""

from __future__ import annotations

import importlib.util
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import ADAPTER_CONFIG_NAME, cached_file
from transformers.utils.logging import disable_progress_bar

from queueserve.errors import EngineError
from workers.engines.fingerprint import fingerprint
from workers.engines.loading import checkpoint_files
from workers.engines.transformers_placement import device_of, placement
from workers.engines.transformers_spread import connect, is_spread
from workers.engines.transformers_tokenizer import TransformersTokenizer
from workers.engines.weights import Weights

Model: TypeAlias = Any  # a PreTrainedModel: transformers is not followed by mypy


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is ready to run."""

    model: Model
    tokenizer: TransformersTokenizer
    ends: frozenset[int]  # the model's end-of-sequence tokens
    fingerprint: str


def load(path: str, *, revision: str | None, weights: Weights) -> Loaded:
    """Load from a directory or, by its id, from the hub or its cache.

    A directory with a PEFT adapter gives its base model with the adapter merged into the weights.
    Code that comes with a model is never run. Raises EngineError for a path that is not a model, a
    checkpoint that is damaged or lacks weights, a model whose attention cannot be paged, and a
    device or a library that is not there.
    """
    try:
        return _load(path, revision=revision, weights=weights)
    except EngineError:
        raise
    except Exception as error:  # transformers, torch and safetensors raise what they like
        reason = str(error).strip() or type(error).__name__
        raise EngineError(f"transformers cannot load {path}: {reason}") from error


def _load(path: str, *, revision: str | None, weights: Weights) -> Loaded:
    disable_progress_bar()  # a worker's output is its log
    adapter = Path(path) if (Path(path) / ADAPTER_CONFIG_NAME).is_file() else None
    base = _base_of(adapter) if adapter else path
    model = _model(base, None if adapter else revision, weights)
    files = _files(base, None if adapter else revision)
    if adapter:
        from peft import PeftModel  # noqa: PLC0415  # an extra of its own

        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
        files += sorted(adapter.glob("adapter_*"))
    source = base if adapter and not any(adapter.glob("tokenizer*")) else path
    backend = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    held = (str(model.dtype), *([f"{weights.bits} bits"] if weights.bits else []))
    return Loaded(
        model=model.eval(),
        tokenizer=TransformersTokenizer(backend),
        ends=_ends(model, backend),
        fingerprint=fingerprint(files, *held),
    )


def _base_of(adapter: Path) -> str:
    """The path or hub id of the model that an adapter was made for."""
    if importlib.util.find_spec("peft") is None:
        raise EngineError(f"{adapter} is a PEFT adapter: pip install 'queueserve[peft]'")
    base = json.loads((adapter / ADAPTER_CONFIG_NAME).read_bytes()).get("base_model_name_or_path")
    if not base:
        raise EngineError(f"{adapter} does not say which model it was made for")
    return str(base)


def _files(path: str, revision: str | None) -> list[Path]:
    return checkpoint_files(Path(cached_file(path, "config.json", revision=revision)).parent)


def _model(path: str, revision: str | None, weights: Weights) -> Model:
    where = device_of(weights.device)
    model, info = AutoModelForCausalLM.from_pretrained(
        path,
        revision=revision,
        trust_remote_code=False,
        output_loading_info=True,
        **_precision(weights, where),
        **placement(weights, where),
    )
    if missing := sorted(info["missing_keys"]):
        # transformers would go on with random numbers there.
        names = ", ".join(missing[:3])
        raise EngineError(f"{path} lacks {len(missing)} of the model's weights: {names} …")
    if not model._supports_attention_backend:  # noqa: SLF001
        # transformers would batch it without a word, and the tokens would be wrong.
        raise EngineError(f"transformers cannot batch a {type(model).__name__}")
    if "disk" in getattr(model, "hf_device_map", {}).values():
        # transformers would read these weights from the checkpoint in every step.
        raise EngineError(
            f"{path} does not fit: more GPUs (--num-gpus), more of them (--max-gpu-memory) "
            "or the machine's memory (--cpu-offloading) could hold it"
        )
    if model.device.type != where.type:  # offloaded, or everything is in the machine's memory
        raise EngineError("the GPU has not even room for the model's embeddings")
    if is_spread(model):
        connect(model)
    quantised = getattr(model, "is_quantized", False)
    if weights.dtype == "auto" and where.type == "cpu" and not quantised:
        model = model.to(_cpu_dtype(model.dtype))
    return model


def _precision(weights: Weights, where: torch.device) -> dict[str, Any]:
    """The arguments of from_pretrained that say how exact the weights are."""
    dtype = weights.dtype if weights.dtype == "auto" else getattr(torch, weights.dtype)
    if weights.bits is None:
        return {"dtype": dtype}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise EngineError(
            f"{weights.bits}-bit weights need a library: pip install 'queueserve[bitsandbytes]'"
        )
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns at every single product
    if dtype == "auto" and where.type == "cpu":  # what is not quantised, and what is computed in
        dtype = _cpu_dtype(torch.bfloat16)
    how = BitsAndBytesConfig(
        load_in_8bit=weights.bits == 8,  # noqa: PLR2004 - the number of bits
        load_in_4bit=weights.bits == 4,  # noqa: PLR2004
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16 if dtype == "auto" else dtype,
        llm_int8_enable_fp32_cpu_offload=weights.is_offloaded,
    )
    return {"dtype": dtype, "quantization_config": how}


def _cpu_dtype(dtype: Any) -> Any:
    """The model's own type where this CPU computes in it, else float32; never float16."""
    if dtype == torch.float32:
        return dtype
    try:
        fast = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001
    except (AttributeError, RuntimeError):  # a build without it
        fast = False
    return torch.bfloat16 if fast else torch.float32


def _ends(model: Model, backend: Any) -> frozenset[int]:
    """The tokens that end an answer: what the generation configuration says, else the tokenizer."""
    ends = model.generation_config.eos_token_id
    if ends is None:
        ends = backend.eos_token_id
    if ends is None:
        return frozenset()
    return frozenset([ends] if isinstance(ends, int) else ends)
