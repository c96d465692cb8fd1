"""GGUF files made from a GGUF file, with its own tokenizer and template."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gguf
import numpy as np


def write_first_layer(source: Path | str, path: Path) -> None:
    """Write to `path` what is in `source` without the layers but the first: quick to run."""
    read = gguf.GGUFReader(source)
    layers = gguf.Keys.LLM.BLOCK_COUNT.format(arch=_architecture(read))
    kept = [one for one in read.tensors if not one.name.startswith("blk.") or "blk.0." in one.name]
    _write(path, read, {layers: 1}, ((one.name, one.data, one.tensor_type) for one in kept))


def write_in_float32(source: Path | str, path: Path) -> None:
    """Write to `path` the model in `source` with all its weights in float32."""
    read = gguf.GGUFReader(source)
    kind = {gguf.Keys.General.FILE_TYPE: int(gguf.LlamaFileType.ALL_F32)}
    weights = (
        (one.name, gguf.quants.dequantize(one.data, one.tensor_type), None) for one in read.tensors
    )
    _write(path, read, kind, weights)


def _architecture(read: gguf.GGUFReader) -> str:
    return read.fields[gguf.Keys.General.ARCHITECTURE].contents()


def _write(
    path: Path,
    read: gguf.GGUFReader,
    changed: dict[str, Any],
    tensors: Iterable[tuple[str, np.ndarray, gguf.GGMLQuantizationType | None]],
) -> None:
    """Tensors are (name, data, how it is quantised)."""
    writer = gguf.GGUFWriter(path, _architecture(read))
    for name, field in read.fields.items():
        if name.startswith("GGUF.") or name == gguf.Keys.General.ARCHITECTURE:
            continue  # the writer's own
        kinds = (field.types[0], field.types[-1] if len(field.types) > 1 else None)
        writer.add_key_value(name, changed.get(name, field.contents()), *kinds)
    for name, data, quantised in tensors:
        writer.add_tensor(name, data, raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
