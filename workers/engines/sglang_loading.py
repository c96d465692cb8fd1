"""From a path and options to an Engine of SGLang that runs, and all that the adapter must know."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import sglang
from sglang.srt.entrypoints.engine import Engine
from transformers.utils import cached_file

from queueserve.errors import EngineError
from workers.engines.base import EngineInfo
from workers.engines.fingerprint import fingerprint
from workers.engines.grammar import Grammars
from workers.engines.loading import checkpoint_files
from workers.engines.sglang_arguments import engine_args
from workers.engines.transformers_tokenizer import TransformersTokenizer

Llm: TypeAlias = Any  # an Engine: sglang is not followed by mypy

_SHORT = 256  # tokens of prompt and answer
_KEPT_FREE = 4  # a prompt must leave so many more tokens than an answer needs


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is ready to run."""

    llm: Llm
    info: EngineInfo
    tokenizer: TransformersTokenizer
    dimensions: int  # of the vectors of a model that gives some
    grammars: Grammars
    ends: frozenset[int]  # the model's own end-of-sequence tokens
    vocabulary: int
    seeds_count: bool  # else SGLang ignores them


def load(
    path: str, options: Mapping[str, object], *, adapters: Mapping[str, Path], arguments: Many[str]
) -> Loaded:
    """Start SGLang, which takes a minute, and describe what it has become.

    Raises EngineError for arguments that SGLang does not know, and for a model that it cannot run.
    """
    args = engine_args(path, options, adapters=adapters, given=arguments)
    llm = None
    try:
        llm = Engine(server_args=args)
        return _described(llm, args, adapters)
    except Exception as error:  # SGLang raises what it likes
        if llm is not None:
            llm.shutdown()
        raise EngineError(f"SGLang cannot run {path}: {error}") from error


def _described(llm: Llm, args: Any, adapters: Mapping[str, Path]) -> Loaded:
    manager = llm.tokenizer_manager
    config, tokenizer = manager.model_config, TransformersTokenizer(manager.tokenizer)
    ends = frozenset({*(config.hf_eos_token_id or ()), manager.tokenizer.eos_token_id} - {None})
    at = Path(cached_file(args.model_path, "config.json", revision=args.revision)).parent
    files = checkpoint_files(at)
    files += [file for path in adapters.values() for file in path.iterdir() if file.is_file()]
    traits = [str(config.dtype), args.quantization, *adapters]
    server = llm.get_server_info()
    context = server["max_req_input_len"] + _KEPT_FREE
    info = EngineInfo(
        engine="sglang",
        version=sglang.__version__,
        fingerprint=fingerprint(files, *filter(None, traits)),
        context_length=context,
        slots=_slots(server, context),
        tasks=("chat", "completion") if config.is_generation else ("embed",),
        adapters=tuple(adapters),
    )
    return Loaded(
        llm=llm,
        info=info,
        tokenizer=tokenizer,
        dimensions=0 if config.is_generation else config.hidden_size,
        grammars=Grammars(partial(tokenizer.pieces, config.vocab_size), ends),
        ends=ends,
        vocabulary=config.vocab_size,
        seeds_count=args.enable_deterministic_inference,
    )


def _slots(server: Mapping[str, Any], context: int) -> int:
    """Sequences at once: SGLang's own limit, while each has the cache for a short one."""
    most: int = server["internal_states"][0]["effective_max_running_requests_per_dp"]
    tokens: int = server["max_total_num_tokens"]
    return max(1, min(most, tokens // min(context, _SHORT)))
