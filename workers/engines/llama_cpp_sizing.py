"""How large llama.cpp is set up where the operator does not say."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from queueserve.errors import EngineError
from workers.engines import machine
from workers.engines.gguf_header import Header

_SLOTS_PER_PROCESSOR = 2
"""On two processors 4 sequences give 85 to 90 % of the tokens/s of 8 or 16, each twice as fast."""
_GPU_SLOTS = 32
_MAX_SLOTS = 256  # llama.cpp's own bound on the sequences of a context
_MAX_CONTEXT = 4096  # tokens
_MIN_CONTEXT = 512
_FAIR_CONTEXT = 2048  # rather fewer slots than less of it in each
# Of the memory, for keys and values over all slots: they are allocated at the start.
_CPU_SHARE, _GPU_SHARE = 1 / 4, 3 / 4  # of all of it; of what the weights leave
_BLOCK = 256  # llama.cpp rounds a context up to this


@dataclass(frozen=True, slots=True)
class Device:
    """Where llama.cpp can compute."""

    is_gpu: bool
    free: int  # bytes


def cache_bytes_per_token(header: Header) -> int:
    """What one token takes in the cache: float16 keys and values for each layer and KV head."""
    layers = int(header.shape("block_count", 0))
    heads = header.shape("attention.head_count", 1)
    kv_heads = header.shape("attention.head_count_kv", heads)  # one number, or one for each layer
    total = sum(kv_heads) if isinstance(kv_heads, list) else kv_heads * layers
    widest = max(heads) if isinstance(heads, list) else heads
    head_size = int(header.shape("embedding_length", 0)) // widest
    key = header.shape("attention.key_length", head_size)
    value = header.shape("attention.value_length", head_size)
    return max(1, int(total * (key + value) * 2))


def choose(
    header: Header,
    devices: Sequence[Device],
    *,
    weights: int,
    slots: int | None,
    context: int | None,
    threads: int,
    gpu_layers: int | None,
) -> tuple[int, int]:
    """The slots, and the tokens of one sequence; both as they are wanted, if they are.

    `weights` is the size of the model in bytes; `threads` -1 is as many as there are processors;
    `gpu_layers` None is as many as fit, 0 none. Raises EngineError.
    """
    gpu = on_gpu(devices, gpu_layers)
    room = _room([device.free for device in devices if device.is_gpu is gpu], weights, gpu)
    if slots is None:
        each = cache_bytes_per_token(header) * (context or _FAIR_CONTEXT)
        computing = threads if threads > 0 else machine.processors()
        good = _GPU_SLOTS if gpu else _SLOTS_PER_PROCESSOR * computing
        slots = max(1, min(good, room // each, _MAX_SLOTS))
    return slots, context_length(header, slots, context, room=room)


def on_gpu(devices: Sequence[Device], gpu_layers: int | None) -> bool:
    """Whether layers, and so their cache, are on a GPU."""
    return gpu_layers != 0 and any(device.is_gpu for device in devices)


def _room(free: list[int], weights: int, gpu: bool) -> int:  # noqa: FBT001
    """Bytes for the cache of all slots, on the devices that compute."""
    if gpu:
        return int(max(0, sum(free) - weights) * _GPU_SHARE)
    return int(min(sum(free), machine.memory()) * _CPU_SHARE)


def context_length(header: Header, slots: int, wanted: int | None, *, room: int) -> int:
    """Tokens for one sequence: `wanted`, or what suits the model and a cache of `room` bytes.

    Raises EngineError where the model was not trained for so many, or llama.cpp has no so many
    slots.
    """
    if slots > _MAX_SLOTS:
        raise EngineError(f"llama.cpp runs {_MAX_SLOTS} sequences at once, not {slots}")
    trained = header.shape("context_length")
    if not trained:
        raise EngineError("the model does not say its context length, so it is no language model")
    if wanted is not None:
        if wanted > trained:
            raise EngineError(
                f"a context of {wanted} tokens is too long: the model was trained for {trained}"
            )
        return wanted
    fitting = room // (slots * cache_bytes_per_token(header)) // _BLOCK * _BLOCK
    return int(min(trained, _MAX_CONTEXT, max(_MIN_CONTEXT, fitting)))


def padded(context: int) -> int:
    """The context that llama.cpp allocates for one of `context` tokens."""
    return -(-context // _BLOCK) * _BLOCK


def threads() -> int:
    """Threads to compute with; -1 leaves it to llama.cpp, which counts physical cores.

    It does not know of CPU affinity and of a container's quota, and with more threads than
    processors it is ten times slower, as its threads wait for each other many times a token.
    """
    usable = machine.processors()
    return usable if usable < (os.cpu_count() or 1) else -1
