"""A model that is quick to run: a GGUF file's first layer, with its own tokenizer and template."""

from __future__ import annotations

from pathlib import Path


def write_first_layer(source: str, path: Path) -> None:
    """Write to `path` what is in the GGUF file `source`, without the layers but the first."""
    import gguf  # noqa: PLC0415  # comes with the transformers engine

    read = gguf.GGUFReader(source)
    architecture = read.fields[gguf.Keys.General.ARCHITECTURE].contents()
    layers = gguf.Keys.LLM.BLOCK_COUNT.format(arch=architecture)
    writer = gguf.GGUFWriter(path, architecture)
    for name, field in read.fields.items():
        if name.startswith("GGUF.") or name == gguf.Keys.General.ARCHITECTURE:
            continue  # the writer's own
        kinds = (field.types[0], field.types[-1] if len(field.types) > 1 else None)
        writer.add_key_value(name, 1 if name == layers else field.contents(), *kinds)
    kept = [one for one in read.tensors if not one.name.startswith("blk.") or "blk.0." in one.name]
    for one in kept:
        writer.add_tensor(one.name, one.data, raw_dtype=one.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
