"""How large llama.cpp is set up where the operator does not say."""

from __future__ import annotations

import os
from pathlib import Path

from queueserve.errors import EngineError
from workers.engines.gguf_header import Header

DEFAULT_SLOTS = 4
"""On a CPU 4 sequences give 85 to 90 % of the tokens/s of 8 or 16, and each is twice as fast."""

_MAX_SLOTS = 256  # llama.cpp's own bound on the sequences of a context
_MAX_CONTEXT = 4096  # tokens
_MAX_CACHE = 2 << 30  # bytes of keys and values, over all slots: they are allocated at the start
_MIN_CONTEXT = 512
_BLOCK = 256  # llama.cpp rounds a context up to this
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


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


def context_length(header: Header, slots: int, wanted: int | None) -> int:
    """Tokens for one sequence: `wanted`, or what suits the model and a cache of 2 GiB in all.

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
    fitting = _MAX_CACHE // (slots * cache_bytes_per_token(header)) // _BLOCK * _BLOCK
    return int(min(trained, _MAX_CONTEXT, max(_MIN_CONTEXT, fitting)))


def padded(context: int) -> int:
    """The context that llama.cpp allocates for one of `context` tokens."""
    return -(-context // _BLOCK) * _BLOCK


def threads() -> int:
    """Threads to compute with; -1 leaves it to llama.cpp, which counts physical cores.

    It does not know of CPU affinity and of a container's quota, and with more threads than
    processors it is ten times slower, as its threads wait for each other many times a token.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    usable = usable or 1
    if _CPU_QUOTA.exists():
        quota, period = _CPU_QUOTA.read_text().split()
        if quota != "max":
            usable = min(usable, max(1, int(quota) // int(period)))
    return usable if usable < (os.cpu_count() or 1) else -1
