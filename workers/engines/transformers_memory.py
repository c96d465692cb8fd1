"""How much memory the key-value cache gets, and so how long a sequence may be.

The cache is taken whole at the start, so its size is a choice: room for every slot at full length,
up to a share of the memory, but for one sequence of full length at the least. When the slots need
more than there is, the manager takes a running sequence out, and computes it again later.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from transformers.generation.continuous_batching.cache import group_layers_by_attn_type
from transformers.generation.continuous_batching.utils import (
    find_head_dim,
    find_num_key_value_heads,
)

from queueserve.errors import EngineError
from workers.engines import machine
from workers.engines.transformers_spread import layers_of

Model: TypeAlias = Any
Config: TypeAlias = Any

_CPU_CACHE = 1 << 30  # bytes; more only where one sequence needs it
_CPU_SHARE = 0.25  # of the memory that this process may use, at most
_GPU_SHARE = 0.75  # the rest is for activations, masks and the attention's copies
_UNKNOWN_CONTEXT = 2048  # tokens, for models without a fixed number of positions
_SLOTS_PER_THREAD = 8
"""Sequences at once for each thread on a CPU.

SmolLM2 in float32, one thread, prompts of 64 tokens and answers of 16, at 1, 2, 4, 8 and 16
sequences: 5.6, 7.9, 11.6, 12.5 and 12.8 tokens for each second of the processor. More threads need
more sequences to be busy; how many was not measured.
"""
_MOST_SLOTS = 32
_SHORT = 256  # tokens of prompt and answer; without room for that in the cache a slot is no use


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSize:
    """What the manager is told."""

    slots: int  # sequences that run at once
    context: int  # tokens of one sequence
    page: int  # tokens; the grain of memory and of shared prefixes
    pages: int
    chunk: int  # tokens in one forward pass: a longer prompt takes several


def positions(config: Config) -> int | None:
    """Tokens that the model was made for; None if it does not say."""
    found = getattr(config.get_text_config(), "max_position_embeddings", None)
    return found if isinstance(found, int) and 0 < found < 1 << 24 else None


def _bytes_per_token(model: Model) -> dict[torch.device, int]:
    """On each device that computes layers."""
    config = model.config.get_text_config()
    heads = find_num_key_value_heads(config) * find_head_dim(config)
    layers = layers_of(model)
    if len(set(layers.values())) == 1:
        return {model.device: 2 * config.num_hidden_layers * heads * model.dtype.itemsize}
    # Layers that share no tensor cannot take what layers of another kind leave.
    kinds = len(group_layers_by_attn_type(config))
    return {
        device: 2 * kinds * count * heads * model.dtype.itemsize
        for device, count in Counter(layers.values()).items()
    }


def _budget(device: Any, one_sequence: int) -> int:
    """Bytes for the cache; on a GPU a share of what is free beside the weights."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * _GPU_SHARE)
    return min(int(machine.memory() * _CPU_SHARE), max(_CPU_CACHE, one_sequence))


def choose(model: Model, *, slots: int | None, context: int | None) -> CacheSize:
    """The sizes for this model on its device, or on each of its devices.

    Without `context` it is the model's own, or as much of it as the memory holds. Without `slots`
    they are what the threads or the GPU compute well together, and no more than the cache has room
    for, with a short sequence in each. Raises EngineError for a context that the model or the
    memory cannot have.
    """
    known = positions(model.config)
    if context is not None and known is not None and context > known:
        raise EngineError(f"the model has {known} positions: a context of {context} is too long")
    on_gpu = model.device.type == "cuda"
    page, chunk = (256, 2048) if on_gpu else (32, 128)
    # A page more than a sequence needs, for the token that is computed last and dropped.
    wanted = context or known or _UNKNOWN_CONTEXT
    fits = -page + min(
        _budget(device, (wanted + page) * per_token) // per_token
        for device, per_token in _bytes_per_token(model).items()
    )
    if fits < min(wanted, page):
        raise EngineError(f"not enough memory for a cache of {page} tokens")
    if context is not None and fits < context:
        raise EngineError(
            f"the memory holds a cache of {fits} tokens, a context of {context} does not fit: "
            "choose a shorter one with --context-length"
        )
    length = min(wanted, fits)
    if slots is None:
        room = (fits + page) // (min(_SHORT, length) + page)
        good = _MOST_SLOTS if on_gpu else _SLOTS_PER_THREAD * torch.get_num_threads()
        slots = max(1, min(good, _MOST_SLOTS, room))
    tokens = min(slots * (length + page), fits + page)
    return CacheSize(
        slots=slots,
        context=length,
        page=page,
        pages=-(-tokens // page),
        chunk=max(chunk, slots),
    )
