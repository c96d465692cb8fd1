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


GIB = 1 << 30
HERE = [sizing.Device(is_gpu=False, free=24 * GIB)]
WITH_GPU = [*HERE, sizing.Device(is_gpu=True, free=20 * GIB)]


pytestmark = pytest.mark.usefixtures("control_groups")


def choose(model, devices, **wanted):
    plain = {"slots": None, "context": None, "threads": 2, "gpu_layers": None, "weights": 4 * GIB}
    return sizing.choose(model, devices, **plain | wanted)


def test_slots_are_what_the_processors_compute_well_together():
    assert choose(SMALL, HERE, threads=1) == (2, 4096)
    assert choose(SMALL, HERE) == (4, 4096)
    assert choose(SMALL, HERE, threads=16) == (32, 4096)
    assert choose(SMALL, HERE, threads=1000)[0] == 136  # 6 GiB / (2048 * 22.5 KiB)
    assert choose(SMALL, HERE, threads=-1)[0] == 16


def test_slots_are_no_more_than_the_memory_holds_at_a_fair_context():
    assert choose(SEVEN_B, HERE) == (4, 3072)
    assert choose(SEVEN_B, HERE, threads=16) == (6, 2048)
    assert choose(SEVEN_B, [sizing.Device(is_gpu=False, free=GIB)]) == (1, 512)
    assert choose(SEVEN_B, HERE, threads=16, context=4096) == (3, 4096)


def test_a_containers_memory_and_processors_are_those_that_count(control_groups):
    control_groups(["0::/"], {"memory.max": 8 * GIB, "cpu.max": "300000 100000"})
    assert choose(SEVEN_B, HERE) == (2, 2048)
    assert choose(SMALL, HERE, threads=-1) == (6, 4096)
    control_groups(["0::/"], {"memory.max": "max"})
    assert choose(SEVEN_B, HERE) == (4, 3072)


def test_a_gpu_computes_more_together_in_the_memory_beside_the_weights():
    assert choose(SMALL, WITH_GPU) == (32, 4096)
    assert choose(SEVEN_B, WITH_GPU) == (12, 2048)  # of 12 GiB
    assert choose(SEVEN_B, WITH_GPU, gpu_layers=0) == (4, 3072)
    assert choose(SEVEN_B, WITH_GPU, weights=30 * GIB) == (1, 512)


def test_wanted_slots_share_the_memory():
    assert choose(SMALL, HERE, slots=64) == (64, 4096)
    assert choose(SEVEN_B, HERE, slots=8) == (8, 1536)
    assert choose(SEVEN_B, HERE, slots=64) == (64, 512)
    assert choose(header(context_length=256), HERE) == (4, 256)


def test_a_wanted_context_is_taken_if_the_model_and_llama_cpp_can_do_it():
    assert choose(SEVEN_B, HERE, slots=64, context=4096) == (64, 4096)
    with pytest.raises(EngineError, match=r"4097 tokens is too long.*trained for 4096"):
        choose(SEVEN_B, HERE, context=4097)
    with pytest.raises(EngineError, match="no language model"):
        choose(header(), HERE)
    with pytest.raises(EngineError, match="256 sequences at once, not 257"):
        choose(SEVEN_B, HERE, slots=257)


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
    monkeypatch, control_groups, usable, quota, threads
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(usable)), raising=False)
    if quota:
        control_groups(["0::/"], {"cpu.max": quota})
    assert sizing.threads() == threads
