"""Reads the header of a GGUF file: what there is to know about a model without loading it.

The format is described at https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; this reads
versions 2 and 3, little-endian. The `gguf` package can too, but wants numpy, and 20 times as long.
"""

from __future__ import annotations

import hashlib
import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from queueserve.errors import EngineError

_MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
_LENGTH = struct.Struct("<Q")
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_SHARD = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")


@dataclass(frozen=True, slots=True)
class Header:
    """The metadata of a GGUF file."""

    metadata: Mapping[str, Any]  # strings, numbers, and lists of them
    digest: str  # of all metadata: the model's shape, its vocabulary, its chat template

    @property
    def architecture(self) -> str:
        """The model's architecture: the prefix of the keys that describe its shape."""
        return str(self.metadata.get("general.architecture", ""))

    def shape(self, name: str, default: Any = None) -> Any:
        """The architecture's value `name`, such as "context_length" or "block_count"."""
        return self.metadata.get(f"{self.architecture}.{name}", default)


class _Cursor:
    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 0

    def scalars(self, code: str, count: int = 1) -> tuple[Any, ...]:
        layout = struct.Struct(f"<{count}{code}")
        values = layout.unpack_from(self.data, self.at)
        self.at += layout.size
        return values

    def string(self) -> str:
        (length,) = _LENGTH.unpack_from(self.data, self.at)
        start = self.at + _LENGTH.size
        end = start + length
        if end > len(self.data):
            raise struct.error("a string goes past the end of the file")
        self.at = end
        return self.data[start:end].decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            item, count = self.scalars("I")[0], self.scalars("Q")[0]
            if item in _SCALARS:
                return list(self.scalars(_SCALARS[item], count))
            if item == _STRING:
                return [self.string() for _ in range(count)]
            return [self.value(item) for _ in range(count)]
        return self.scalars(_SCALARS[kind])[0]


def read_header(path: Path) -> Header:
    """The header of the GGUF file at `path`.

    Raises EngineError where there is no such file, or it is not GGUF, or its header is damaged.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(data, path)
    except OSError as error:
        raise EngineError(f"cannot read the model file {path}: {error.strerror}") from error
    except ValueError as error:  # an empty file cannot be mapped
        raise EngineError(f"{path} is empty, not a GGUF model file") from error


def _parse(data: mmap.mmap, path: Path) -> Header:
    if data[:4] != _MAGIC:
        raise EngineError(f"{path} is not a GGUF model file")
    cursor = _Cursor(data)
    cursor.at = len(_MAGIC)
    try:
        (version,) = cursor.scalars("I")
        if version not in (2, 3):
            raise EngineError(f"{path} is of GGUF version {version}; versions 2 and 3 are known")
        _tensors, entries = cursor.scalars("Q", 2)
        metadata = {}
        for _ in range(entries):
            key = cursor.string()
            metadata[key] = cursor.value(cursor.scalars("I")[0])
    except (struct.error, KeyError, OverflowError, MemoryError) as error:
        raise EngineError(f"{path} is damaged: its GGUF header cannot be read") from error
    return Header(metadata, hashlib.blake2b(data[: cursor.at], digest_size=16).hexdigest())


def parts(path: Path) -> list[Path]:
    """The files of the model that `path` is, or is the first part of."""
    pattern = _SHARD.sub(r"-?????-of-\1.gguf", path.name)
    return [path] if pattern == path.name else sorted(path.parent.glob(pattern))


def size(path: Path) -> int:
    """Bytes of the model, in all its files."""
    return sum(part.stat().st_size for part in parts(path))
