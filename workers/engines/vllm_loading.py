"""From a path and options to an AsyncLLM that runs, and all that the adapter must know of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import vllm
from transformers import AutoTokenizer
from transformers.utils import cached_file
from vllm.lora.request import LoRARequest
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.async_llm import AsyncLLM

from queueserve.errors import EngineError
from workers.engines.base import EngineInfo
from workers.engines.fingerprint import fingerprint
from workers.engines.grammar import Grammars
from workers.engines.loading import checkpoint_files
from workers.engines.safetensors_files import check_whole
from workers.engines.transformers_tokenizer import TransformersTokenizer
from workers.engines.vllm_arguments import engine_args

Llm: TypeAlias = Any  # an AsyncLLM: vllm is not followed by mypy

_SHORT = 256  # tokens of prompt and answer


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is ready to run."""

    llm: Llm
    info: EngineInfo
    tokenizer: TransformersTokenizer
    grammars: Grammars
    ends: frozenset[int]  # the model's end-of-sequence tokens
    adapters: Mapping[str, LoRARequest]
    seeds_by_position: bool  # a seed and a token's position decide its draw
    prioritises: bool
    dimensions: int  # of the vectors of a model that gives some


def load(
    path: str,
    options: Mapping[str, object],
    *,
    adapters: Mapping[str, Path],
    arguments: Sequence[str],
) -> Loaded:
    """Start vLLM, which takes a minute, and describe what it has become.

    Raises EngineError for arguments that vLLM does not know, and for a model that it cannot run, or
    of which a file is cut off.
    """
    args = engine_args(path, options, arguments)
    _check_files(args.model)
    llm = None
    try:
        # As an API server, vLLM sizes its batches for streams and not for bulk.
        llm = AsyncLLM.from_engine_args(args, usage_context=UsageContext.OPENAI_API_SERVER)
        return _described(llm, args, adapters)
    except Exception as error:  # vLLM raises what it likes
        if llm is not None:
            llm.shutdown()
        raise EngineError(f"vLLM cannot run {path}: {error}") from error


def _check_files(model: str) -> None:
    """Raise EngineError for a directory with files that are cut off.

    What vLLM would raise, a minute later, is that one of its processes has failed.
    """
    if Path(model).is_dir():
        check_whole(Path(model))


def _described(llm: Llm, args: Any, adapters: Mapping[str, Path]) -> Loaded:
    backend = AutoTokenizer.from_pretrained(
        args.tokenizer or args.model,
        revision=args.tokenizer_revision or args.revision,
        trust_remote_code=args.trust_remote_code,
    )
    tokenizer = TransformersTokenizer(backend)
    config = llm.vllm_config
    ends = config.model_config.try_get_generation_config().get("eos_token_id")
    ends = backend.eos_token_id if ends is None else ends
    ends = frozenset(ends if isinstance(ends, list) else {ends} - {None})
    pieces = partial(tokenizer.pieces, config.model_config.get_vocab_size())
    return Loaded(
        llm=llm,
        info=_info(config, args, adapters),
        tokenizer=tokenizer,
        grammars=Grammars(pieces, ends),
        ends=ends,
        adapters={
            name: LoRARequest(name, number, str(path))
            for number, (name, path) in enumerate(adapters.items(), 1)
        },
        seeds_by_position=bool(getattr(config, "use_v2_model_runner", False)),
        prioritises=config.scheduler_config.policy == "priority",
        dimensions=config.model_config.embedding_size if _pools(config) else 0,
    )


def _info(config: Any, args: Any, adapters: Mapping[str, Path]) -> EngineInfo:
    at = Path(cached_file(args.model, "config.json", revision=args.revision)).parent
    files = checkpoint_files(at)
    files += [file for path in adapters.values() for file in path.iterdir() if file.is_file()]
    traits = [str(config.model_config.dtype), args.quantization, *adapters]
    context = config.model_config.max_model_len
    return EngineInfo(
        engine="vllm",
        version=vllm.__version__,
        fingerprint=fingerprint(files, *filter(None, traits)),
        context_length=context,
        slots=_slots(config, context),
        tasks=("embed",) if _pools(config) else ("chat", "completion"),
        adapters=tuple(adapters),
        scores_prompts=not _pools(config),
    )


def _pools(config: Any) -> bool:
    return bool(config.model_config.runner_type == "pooling")


def _slots(config: Any, context: int) -> int:
    """Sequences at once: vLLM's own limit, while each has the cache for a short one."""
    tokens = (config.cache_config.num_gpu_blocks or 0) * config.cache_config.block_size
    most: int = config.scheduler_config.max_num_seqs
    return max(1, min(most, tokens // min(context, _SHORT))) if tokens else most
