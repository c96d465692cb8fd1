"""From a path or a hub id to a model in memory, its tokenizer and its fingerprint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import cached_file
from transformers.utils.logging import disable_progress_bar

from queueserve.errors import EngineError
from workers.engines.fingerprint import fingerprint
from workers.engines.loading import checkpoint_files
from workers.engines.transformers_tokenizer import TransformersTokenizer

Model: TypeAlias = Any  # a PreTrainedModel: transformers is not followed by mypy


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is ready to run."""

    model: Model
    tokenizer: TransformersTokenizer
    ends: frozenset[int]  # the model's end-of-sequence tokens
    fingerprint: str


def load(path: str, *, revision: str | None, dtype: str, device: str | None) -> Loaded:
    """Load from a directory or, by its id, from the hub or its cache.

    Code that comes with a model is never run. Raises EngineError for a path that is not a model, a
    checkpoint that is damaged or lacks weights, a model whose attention cannot be paged, and a
    device that is not there.
    """
    try:
        return _load(path, revision=revision, dtype=dtype, device=device)
    except EngineError:
        raise
    except Exception as error:  # transformers, torch and safetensors raise what they like
        reason = str(error).strip() or type(error).__name__
        raise EngineError(f"transformers cannot load {path}: {reason}") from error


def _load(path: str, *, revision: str | None, dtype: str, device: str | None) -> Loaded:
    disable_progress_bar()  # a worker's output is its log
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model, info = AutoModelForCausalLM.from_pretrained(
        path,
        revision=revision,
        dtype=dtype if dtype == "auto" else getattr(torch, dtype),
        device_map={"": where},
        trust_remote_code=False,
        output_loading_info=True,
    )
    if missing := sorted(info["missing_keys"]):
        # transformers would go on with random numbers there.
        names = ", ".join(missing[:3])
        raise EngineError(f"{path} lacks {len(missing)} of the model's weights: {names} …")
    if not model._supports_attention_backend:  # noqa: SLF001
        # transformers would batch it without a word, and the tokens would be wrong.
        raise EngineError(f"transformers cannot batch a {type(model).__name__}")
    if dtype == "auto" and where.type == "cpu":
        model = model.to(_cpu_dtype(model.dtype))
    backend = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
    directory = Path(cached_file(path, "config.json", revision=revision)).parent
    return Loaded(
        model=model.eval(),
        tokenizer=TransformersTokenizer(backend),
        ends=_ends(model, backend),
        fingerprint=fingerprint(checkpoint_files(directory), str(model.dtype)),
    )


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
