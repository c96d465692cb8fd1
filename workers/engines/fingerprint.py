"""A model's fingerprint: equal on two machines that hold the same files, and cheap to take.

Reading gigabytes of weights to hash them would double the time a worker needs to be ready. Size and
samples from all over each large file tell any two real models apart; small files are read whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

_WHOLE = 16 << 20  # bytes: configurations, tokenizers and headers are smaller than this
_SAMPLES = 64
_SAMPLE = 4096  # bytes each


def _hash_file(path: Path, digest: hashlib.blake2b) -> None:
    size = path.stat().st_size
    digest.update(f"{path.name}\0{size}\0".encode())
    with path.open("rb") as file:
        if size <= _WHOLE:
            digest.update(file.read())
            return
        for part in range(_SAMPLES):
            # The first sample is the header, the last one the very end.
            file.seek((size - _SAMPLE) * part // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE))


def fingerprint(files: Iterable[Path], *traits: str) -> str:
    """32 hex digits from the names, sizes and contents of `files`, and from `traits`.

    `traits` is what else decides the tokens: the data type, say. The order of files does not count,
    nor does the directory that they are in.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(files, key=lambda path: path.name):
        _hash_file(path, digest)
    digest.update("\0".join(traits).encode())
    return digest.hexdigest()
