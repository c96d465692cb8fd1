"""Whether the safetensors files of a model are whole, before a library takes a minute to fail.

A file is 8 bytes with the length of its header, little-endian, then the header, a JSON object that
says for each tensor where its bytes begin and end after the header, and then those bytes:
https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
from pathlib import Path

from queueserve.errors import EngineError

_LENGTH = 8  # bytes


def check_whole(directory: Path) -> None:
    """Raise EngineError for a file that is cut off, or is none.

    Only headers are read. The values are not looked at.
    """
    for file in sorted(directory.glob("*.safetensors")):
        size = file.stat().st_size
        try:
            wanted = _size(file, size)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EngineError(f"{file} is damaged: it has no header of safetensors") from error
        if size < wanted:
            raise EngineError(f"{file} is damaged: it has {size} of its {wanted} bytes")


def _size(file: Path, most: int) -> int:
    """Return how many bytes it should have. Raises what reading nonsense raises."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(_LENGTH), "little")
        if length > most:
            raise ValueError(length)
        header = json.loads(stream.read(length))
    ends = [one["data_offsets"][1] for name, one in header.items() if name != "__metadata__"]
    return _LENGTH + length + max(ends, default=0)
