"""How much an encoder on transformers computes at once: inputs, tokens and jobs."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import torch

from workers.engines import machine

Model: TypeAlias = Any  # a PreTrainedModel: transformers is not followed by mypy

_SLOTS_PER_THREAD = 16
"""Jobs at once for each thread on a CPU: the more, the fuller is a batch of short texts.

MiniLM, one thread, texts for each second of the processor, at 1, 2, 4, 8, 16 and 32 jobs of a text:
52, 86, 125, 161, 196 and 205 where it has 16 tokens, 21, 26, 28, 28, 29 and 29 where it has 128.
"""
_GPU_SLOTS = 64  # not measured
_ITEMS = {False: 64, True: 512}  # in a batch: on a CPU, on a GPU
_TOKENS = {False: 4096, True: 65_536}
_CPU_SHARE, _GPU_SHARE = 1 / 8, 1 / 2  # of all memory; of what is free beside the weights
_WIDE = 8  # vectors of the hidden size that a layer holds at once beside its widest one


class Bounds(NamedTuple):
    """How much is computed at once, at most."""

    slots: int  # jobs
    items: int  # inputs in a batch
    tokens: int  # in a batch, with its padding; one input is computed however long it is


def bounds_of(model: Model, context: int) -> Bounds:
    """What suits the device of a model whose inputs have up to `context` tokens."""
    on_gpu = model.device.type != "cpu"
    tokens = min(_TOKENS[on_gpu], int(_memory(model.device) / _bytes_per_token(model, context)))
    items = _ITEMS[on_gpu]
    slots = _GPU_SLOTS if on_gpu else min(items, _SLOTS_PER_THREAD * torch.get_num_threads())
    return Bounds(slots, items, max(1, tokens))


def _memory(device: torch.device) -> float:
    """Bytes for what a batch needs while it is computed."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0]) * _GPU_SHARE
    return machine.memory() * _CPU_SHARE


def _bytes_per_token(model: Model, context: int) -> int:
    """What a token of a batch needs, in one layer: others' values are gone by then."""
    config = model.config
    wide = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    scores = config.num_attention_heads * context  # of its attention, where they are written down
    return int((_WIDE * config.hidden_size + wide + scores) * model.dtype.itemsize)
