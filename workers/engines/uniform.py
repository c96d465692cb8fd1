"""Random numbers that depend on nothing but a seed and the index of a token."""

from __future__ import annotations

import hashlib


def uniform(seed: int, index: int) -> float:
    """Return the random number in [0, 1) that decides output token `index`: 48 bits of a hash."""
    digest = hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big") / (1 << 48)
