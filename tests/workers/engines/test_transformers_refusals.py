"""What the transformers engine does not start with, and the reason that it gives."""

import json
import shutil
import sys

import pytest
from transformers_engines import engine_on, refusal_of

from queueserve.errors import EngineError
from workers.engines import conversion

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_a_library_that_is_missing_is_named_with_its_extra(tiny_llama, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "pip install 'queueserve[transformers]'" in await refusal_of(engine_on(tiny_llama))


async def test_a_path_without_a_model_is_refused(tmp_path):
    assert "there is no directory" in await refusal_of(engine_on(tmp_path / "nothing"))
    assert "cannot load" in await refusal_of(engine_on(tmp_path))


async def test_a_damaged_checkpoint_is_refused_with_the_reason(tiny_llama, tmp_path):
    damaged = shutil.copytree(tiny_llama, tmp_path / "damaged")
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    message = await refusal_of(engine_on(damaged))
    assert str(damaged) in message
    assert "header" in message.lower() or "incomplete" in message.lower()


@pytest.mark.parametrize(
    "file", ["model.safetensors", "config.json", "tokenizer.json"], ids=lambda file: file
)
async def test_garbage_in_a_checkpoint_is_refused(tiny_llama, tmp_path, file):
    damaged = shutil.copytree(tiny_llama, tmp_path / "damaged")
    (damaged / file).write_bytes(bytes(at * 31 % 251 for at in range(5000)))
    assert f"cannot load {damaged}: " in await refusal_of(engine_on(damaged))


async def test_a_checkpoint_that_lacks_weights_is_refused(tiny_llama, tmp_path):
    deeper = shutil.copytree(tiny_llama, tmp_path / "deeper")
    config = json.loads((deeper / "config.json").read_text())
    (deeper / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    assert "lacks 9 of the model's weights" in await refusal_of(engine_on(deeper))


async def test_code_that_comes_with_a_model_is_not_run(tmp_path, tiny_llama):
    model = shutil.copytree(tiny_llama, tmp_path / "own-code")
    own = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | own))
    (model / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert "cannot load" in await refusal_of(engine_on(model))
    assert not (tmp_path / "ran").exists()


async def test_a_model_whose_attention_cannot_be_paged_is_refused(tmp_path, write_model):
    from transformers import BloomConfig, BloomForCausalLM  # noqa: PLC0415

    config = BloomConfig(vocab_size=258, hidden_size=32, n_layer=2, n_head=4)
    write_model(tmp_path, BloomForCausalLM(config))
    assert "cannot batch a BloomForCausalLM" in await refusal_of(engine_on(tmp_path))


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"context_length": 257}, "the model has 256 positions"),
        ({"dtype": "int3"}, "int3"),
        ({"device": "cuda:9"}, "torch finds no such device"),
    ],
    ids=["context", "dtype", "device"],
)
async def test_an_option_that_cannot_be_had_is_refused(tiny_llama, options, reason):
    assert reason in await refusal_of(engine_on(tiny_llama, **options))


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"device": "cuda:9"}, "--device cuda:9: torch finds no such device"),
        ({"device": "gpu"}, "knows no device 'gpu'"),
        ({"num_gpus": 2, "device": "cpu"}, "sharing a model is for GPUs"),
        ({"cpu_offloading": True, "device": "cpu"}, "offloading is for GPUs"),
    ],
)
async def test_a_device_that_is_not_here_is_told_before_a_file_is_converted(
    tmp_path, monkeypatch, smollm2_gguf, options, reason
):
    begun = []

    def convert(*paths):
        begun.append(paths)
        raise EngineError("it was converted")

    monkeypatch.setattr(conversion, "convert_gguf", convert)
    assert reason in await refusal_of(engine_on(smollm2_gguf, cache_dir=tmp_path, **options))
    assert not begun
    assert "it was converted" in await refusal_of(
        engine_on(smollm2_gguf, cache_dir=tmp_path, device="cpu")
    )
