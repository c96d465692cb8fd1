"""The fake engine's vectors: texts with the same tokens are close, whatever their order."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from hashlib import blake2b

DIMENSIONS = 16


def vector_of(tokens: tuple[int, ...]) -> array[float]:
    """Return the sum of the tokens' own directions, of length 1."""
    total = [0.0] * DIMENSIONS
    for token, times in Counter(tokens).items():
        digest = blake2b(str(token).encode(), digest_size=DIMENSIONS).digest()
        for at, byte in enumerate(digest):
            total[at] += times * (byte - 127.5)
    length = math.hypot(*total)
    return array("f", [number / length for number in total])
