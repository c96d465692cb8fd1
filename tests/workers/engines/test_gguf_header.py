"""Headers of GGUF files: real ones, hand-made ones and damaged ones."""

import struct

import pytest

from queueserve.errors import EngineError
from workers.engines.gguf_header import parts, read_header


def string(text):
    return struct.pack("<Q", len(text.encode())) + text.encode()


def gguf(entries, version=3):
    return b"GGUF" + struct.pack("<IQQ", version, 0, len(entries)) + b"".join(entries)


ENTRIES = [
    string("general.architecture") + struct.pack("<I", 8) + string("llama"),
    string("llama.context_length") + struct.pack("<II", 4, 2048),
    string("llama.rope.freq_base") + struct.pack("<If", 6, 0.5),
    string("split.count") + struct.pack("<IH", 2, 1),
    string("flag") + struct.pack("<I?", 7, True),
    string("big") + struct.pack("<IQ", 10, 1 << 40),
    string("tokens") + struct.pack("<IIQ", 9, 8, 2) + string("▁a") + string(""),
    string("types") + struct.pack("<IIQ3i", 9, 5, 3, 1, -2, 3),
    string("nested") + struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQ2B", 0, 2, 7, 8),
]


@pytest.fixture
def write(tmp_path):
    def to_file(data, name="model.gguf"):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return to_file


@pytest.mark.parametrize("version", [2, 3])
def test_every_kind_of_value_is_read(write, version):
    header = read_header(write(gguf(ENTRIES, version) + b"tensors"))
    assert header.metadata == {
        "general.architecture": "llama",
        "llama.context_length": 2048,
        "llama.rope.freq_base": 0.5,
        "split.count": 1,
        "flag": True,
        "big": 1 << 40,
        "tokens": ["▁a", ""],
        "types": [1, -2, 3],
        "nested": [[7, 8]],
    }
    assert header.shape("context_length") == 2048
    assert header.shape("block_count", 12) == 12


def test_the_digest_is_of_the_metadata_and_not_of_what_follows(write):
    first, same = write(gguf(ENTRIES) + b"one"), write(gguf(ENTRIES) + b"two", "other.gguf")
    different = write(gguf(ENTRIES[:-1]), "third.gguf")
    assert read_header(first).digest == read_header(same).digest
    assert read_header(first).digest != read_header(different).digest


def test_the_real_model(smollm2_gguf):
    header = read_header(smollm2_gguf)
    assert header.architecture == "llama"
    assert header.shape("context_length") == 8192
    assert len(header.metadata["tokenizer.ggml.tokens"]) == 49152
    assert header.metadata["tokenizer.ggml.tokens"][2] == "<|im_end|>"


@pytest.mark.parametrize("cut", [5, 20, 30, 60, 110, -1])
def test_a_header_that_is_cut_off_is_called_damaged(write, cut):
    with pytest.raises(EngineError, match="damaged"):
        read_header(write(gguf(ENTRIES)[:cut]))


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "is empty"),
        (b"hello, this is text", "is not a GGUF model file"),
        (gguf([], version=1), "version 1"),
        (gguf([string("a") + struct.pack("<I", 99)]), "damaged"),
        (gguf([string("a") + struct.pack("<IIQ", 9, 5, 1 << 60)]), "damaged"),
        (gguf([string("a") + struct.pack("<IIQ", 9, 8, 1 << 60)]), "damaged"),
        (gguf([struct.pack("<Q", 1 << 60)]), "damaged"),
    ],
)
def test_what_is_no_gguf_file_is_refused_with_the_reason(write, data, reason):
    with pytest.raises(EngineError, match=reason):
        read_header(write(data))


def test_a_missing_file_and_a_directory_are_named(tmp_path):
    for path in (tmp_path / "no.gguf", tmp_path):
        with pytest.raises(EngineError, match=f"cannot read the model file {path}"):
            read_header(path)


def test_the_parts_of_a_model_in_several_files(write, tmp_path):
    names = [f"m-0000{part}-of-00003.gguf" for part in (1, 2, 3)]
    files = [write(b"", name) for name in names]
    write(b"", "m-00001-of-00002.gguf")
    write(b"", "n-00001-of-00003.gguf")
    assert parts(files[0]) == files
    assert parts(tmp_path / "one.gguf") == [tmp_path / "one.gguf"]
