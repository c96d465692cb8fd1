"""A model for mlx-lm, and how much of it runs at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import mlx.core as mx
import mlx_lm
from mlx.utils import tree_flatten

from queueserve.errors import EngineError
from queueserve.protocol import TokenLogprob
from workers.engines import machine
from workers.engines.fingerprint import fingerprint
from workers.engines.loading import checkpoint_files
from workers.engines.transformers_tokenizer import TransformersTokenizer

Model: TypeAlias = Any  # an mlx.nn.Module: mlx is not followed by mypy

_DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
_MOST_SLOTS = {True: 32, False: 8}  # on a GPU, and on a CPU
_CPU_SHARE = 0.25  # of the memory that this process may use, for the caches of all sequences
_UNKNOWN_CONTEXT = 2048  # tokens, for models without a fixed number of positions
_CHUNK = 256  # tokens whose scores are computed at a time


class Size(NamedTuple):
    """How much runs at once."""

    slots: int
    context: int  # tokens of a sequence
    spare: int  # bytes of memory that are left when all slots are full


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is ready to run."""

    model: Model
    tokenizer: TransformersTokenizer
    ends: frozenset[int]  # the model's end-of-sequence tokens
    vocabulary: int
    fingerprint: str
    slots: int
    context: int
    spare: int  # bytes of memory for the caches of sequences that have ended


def load(
    path: str, *, revision: str | None, dtype: str, slots: int | None, context: int | None
) -> Loaded:
    """Load a directory or a hub id. Raises EngineError."""
    try:
        model, tokenizer, config = mlx_lm.load(path, revision=revision, return_config=True)
        if dtype != "auto":
            model.set_dtype(_DTYPES[dtype])
        mx.eval(model.parameters())
    except KeyError as error:
        raise EngineError(f"mlx knows no --dtype {dtype}: it knows {', '.join(_DTYPES)}") from error
    except Exception as error:  # mlx-lm raises what it likes
        raise EngineError(f"mlx-lm cannot load {path}: {error}") from error
    directory = Path(path) if Path(path).is_dir() else _on_hub(path, revision)
    text: Mapping[str, Any] = config.get("text_config") or config
    size = sizes(text, weights=_bytes_of(model), dtype=dtype, slots=slots, context=context)
    return Loaded(
        model=model,
        tokenizer=TransformersTokenizer(tokenizer._tokenizer),  # noqa: SLF001
        ends=frozenset(tokenizer.eos_token_ids),
        vocabulary=int(text["vocab_size"]),
        fingerprint=fingerprint(checkpoint_files(directory), dtype),
        slots=size.slots,
        context=size.context,
        spare=size.spare,
    )


def _on_hub(path: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - comes with mlx-lm

    return Path(snapshot_download(path, revision=revision, local_files_only=True))


def _bytes_of(model: Model) -> int:
    return sum(array.nbytes for _, array in tree_flatten(model.parameters()))


def sizes(
    config: Mapping[str, Any], *, weights: int, dtype: str, slots: int | None, context: int | None
) -> Size:
    """Return the wanted slots and tokens for each, or what the memory holds.

    `config` is that of the language model, `weights` are its bytes. Raises EngineError where not
    even one sequence of the wanted length fits.
    """
    heads = int(config["num_attention_heads"])
    head = config.get("head_dim") or int(config["hidden_size"]) // heads
    pairs = int(config["num_hidden_layers"]) * int(config.get("num_key_value_heads") or heads)
    token = 2 * pairs * int(head) * (4 if dtype == "float32" else 2)
    trained = int(config.get("max_position_embeddings") or _UNKNOWN_CONTEXT)
    if context is not None and context > trained:
        raise EngineError(f"a context of {context} tokens: the model was made for {trained}")
    on_gpu, memory = _memory(weights)
    if memory < token * (context or 1):
        raise EngineError(
            f"no memory for a context of {context or 1} tokens beside the model's weights"
        )
    length = context or min(trained, memory // token)
    count = slots or max(1, min(_MOST_SLOTS[on_gpu], memory // (token * length)))
    return Size(count, length, max(0, memory - count * token * length))


def _memory(weights: int) -> tuple[bool, int]:
    """Return whether there is a GPU, and the bytes that caches may take."""
    of_gpu = mx.device_info().get("max_recommended_working_set_size")
    if of_gpu:
        return True, max(0, int(of_gpu) - weights)
    return False, int(machine.memory() * _CPU_SHARE)


def score(model: Model, tokens: tuple[int, ...], top: int) -> tuple[TokenLogprob, ...]:
    """Return the log-probability of each token but the first after those before it."""
    cache, scored = mlx_lm.models.cache.make_prompt_cache(model), list[TokenLogprob]()
    for start in range(0, len(tokens) - 1, _CHUNK):
        end = min(start + _CHUNK, len(tokens) - 1)
        logits = model(mx.array([tokens[start:end]]), cache=cache)[0].astype(mx.float32)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        wanted = mx.array(tokens[start + 1 : end + 1])[:, None]
        own: Any = mx.take_along_axis(logprobs, wanted, axis=-1)[:, 0].tolist()
        best = mx.argsort(-logprobs, axis=-1)[:, :top]
        ids: Any = best.tolist()
        values: Any = mx.take_along_axis(logprobs, best, axis=-1).tolist()
        scored += (
            TokenLogprob(one, tuple(zip(which, how_likely, strict=True)))
            for one, which, how_likely in zip(own, ids, values, strict=True)
        )
    return tuple(scored)
