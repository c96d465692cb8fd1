"""How large llama.cpp is set up by default."""

import os

import pytest

from queueserve.errors import EngineError
from workers.engines import llama_cpp_sizing as sizing
from workers.engines.gguf_header import Header, read_header


def header(**shape):
    about = {f"llama.{key.replace('__', '.')}": value for key, value in shape.items()}
    return Header({"general.architecture": "llama"} | about, digest="")


SMALL = header(
    context_length=8192,
    block_count=30,
    embedding_length=576,
    attention__head_count=9,
    attention__head_count_kv=3,
)
SEVEN_B = header(
    context_length=4096, block_count=32, embedding_length=4096, attention__head_count=32
)


def test_the_cache_of_a_token(smollm2_gguf):
    assert sizing.cache_bytes_per_token(SMALL) == 30 * 3 * (64 + 64) * 2
    assert sizing.cache_bytes_per_token(read_header(smollm2_gguf)) == 30 * 3 * (64 + 64) * 2
    assert sizing.cache_bytes_per_token(SEVEN_B) == 32 * 32 * (128 + 128) * 2
    mixed = header(
        block_count=2,
        embedding_length=64,
        attention__head_count=[4, 4],
        attention__head_count_kv=[2, 1],
        attention__key_length=32,
        attention__value_length=16,
    )
    assert sizing.cache_bytes_per_token(mixed) == 3 * (32 + 16) * 2


def test_the_default_context_suits_the_model_and_the_memory():
    assert sizing.context_length(SMALL, 4, None) == 4096
    assert sizing.context_length(SMALL, 64, None) == 1280
    assert sizing.context_length(SEVEN_B, 4, None) == 1024
    assert sizing.context_length(SEVEN_B, 64, None) == 512
    assert sizing.context_length(header(context_length=256), 4, None) == 256


def test_a_wanted_size_is_taken_if_the_model_and_llama_cpp_can_do_it():
    assert sizing.context_length(SEVEN_B, 64, 4096) == 4096
    with pytest.raises(EngineError, match=r"4097 tokens is too long.*trained for 4096"):
        sizing.context_length(SEVEN_B, 1, 4097)
    with pytest.raises(EngineError, match="no language model"):
        sizing.context_length(header(), 1, None)
    with pytest.raises(EngineError, match="256 sequences at once, not 257"):
        sizing.context_length(SEVEN_B, 257, None)


def test_contexts_are_padded_as_llama_cpp_does():
    assert [sizing.padded(length) for length in (1, 256, 257)] == [256, 256, 512]


@pytest.mark.parametrize(
    "usable, quota, threads",
    [
        (8, "max 100000", -1),
        (3, "max 100000", 3),
        (8, "250000 100000", 2),
        (2, "400000 100000", 2),
        (8, "50000 100000", 1),
        (8, None, -1),
    ],
)
def test_threads_are_not_more_than_the_processors_to_be_had(
    monkeypatch, tmp_path, usable, quota, threads
):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(usable)), raising=False)
    file = tmp_path / "cpu.max"
    if quota:
        file.write_text(quota + "\n")
    monkeypatch.setattr(sizing, "_CPU_QUOTA", file)
    assert sizing.threads() == threads
