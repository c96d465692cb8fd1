"""How the transformers engine holds weights: in 8 and 4 bits, with an adapter, and where."""

from __future__ import annotations

import importlib.util
import json
import shutil

import pytest
from transformers_engines import refusal_of

from workers.engines.transformers import TransformersEngine

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.asyncio(loop_scope="session")

QUESTION = (
    "<|im_start|>user\nWhat is the capital of France? Answer in one sentence.<|im_end|>\n"
    "<|im_start|>assistant\n"
)


def engine_on(path, **options):
    return TransformersEngine(str(path), **({"slots": 2, "context_length": 128} | options))


@pytest.fixture
def without(monkeypatch):
    """Make a library look as if it were not installed."""
    find = importlib.util.find_spec

    def leave_out(name):
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda wanted, *more: None if wanted == name else find(wanted, *more),
        )

    return leave_out


@pytest.mark.parametrize("bits", [8, 4])
async def test_a_quantised_model_is_smaller_and_still_knows(
    make_run, smollm2_gguf, converted_models, bits
):
    engine = engine_on(smollm2_gguf, cache_dir=converted_models, bits=bits)
    run = await make_run(engine).start()
    model = engine._batcher._model
    assert model.get_memory_footprint() < 0.75 * 2 * sum(p.numel() for p in model.parameters())
    result = await run.generate(await run.encode(QUESTION), max_tokens=12)
    assert "Paris" in run.text(result.tokens)
    await engine.close()


async def test_the_fingerprint_tells_the_bits(make_run, tiny_llama):
    prints = set()
    for bits in (None, 8):
        run = await make_run(engine_on(tiny_llama, dtype="float32", bits=bits)).start()
        prints.add(run.engine.info.fingerprint)
        await run.engine.close()
    assert len(prints) == 2


async def test_bits_without_their_library_are_refused_with_what_to_do(tiny_llama, without):
    without("bitsandbytes")
    assert "queueserve[bitsandbytes]" in await refusal_of(engine_on(tiny_llama, bits=8))


# Adapters


@pytest.fixture(scope="session")
def adapted(tiny_llama, tmp_path_factory):
    """A LoRA adapter for tiny_llama, random and strong; and the model it makes, saved whole."""
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    torch.manual_seed(11)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"])
    model = get_peft_model(base, config)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "lora_B" in name:
                weights.normal_(std=0.2)
    adapter, whole = tmp_path_factory.mktemp("adapter"), tmp_path_factory.mktemp("whole")
    model.save_pretrained(adapter)
    shutil.copytree(tiny_llama, whole, dirs_exist_ok=True)
    model.merge_and_unload().save_pretrained(whole)
    return adapter, whole


async def test_an_adapter_gives_what_the_merged_model_gives(make_run, adapted, tiny_llama):
    texts = []
    for path in (*adapted, tiny_llama):
        run = await make_run(engine_on(path, dtype="float32")).start()
        result = await run.generate(tuple(b"once upon a time"), max_tokens=24, ignore_eos=True)
        texts.append((result.tokens, run.engine.info.fingerprint))
        await run.engine.close()
    by_adapter, by_whole, by_base = texts
    assert by_adapter[0] == by_whole[0] != by_base[0]
    assert by_adapter[1] != by_base[1]


async def test_an_adapter_without_peft_or_without_its_model_is_refused(adapted, tmp_path, without):
    orphan = shutil.copytree(adapted[0], tmp_path / "orphan")
    settings = json.loads((orphan / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = None
    (orphan / "adapter_config.json").write_text(json.dumps(settings))
    assert "does not say which model" in await refusal_of(engine_on(orphan))
    without("peft")
    assert "queueserve[peft]" in await refusal_of(engine_on(adapted[0]))


# Where the weights are


@pytest.mark.parametrize("options", [{"cpu_offloading": True}, {"max_gpu_memory": "1GiB"}])
async def test_offloading_is_for_a_gpu(tiny_llama, options):
    assert "offloading is for GPUs" in await refusal_of(
        engine_on(tiny_llama, device="cpu", **options)
    )


async def test_a_model_that_does_not_fit_is_refused_and_not_read_from_disk_in_every_step(
    tiny_llama, monkeypatch
):
    little = {"device_map": "auto", "max_memory": {"cpu": 60_000}}
    monkeypatch.setattr("workers.engines.transformers_loading.placement", lambda *_: little)
    assert "does not fit: more GPUs (--num-gpus)" in await refusal_of(engine_on(tiny_llama))


async def test_a_gpu_without_room_for_anything_is_not_left_out_silently(tiny_llama, monkeypatch):
    """Then accelerate leaves the whole model in the machine's memory."""
    for name in ("transformers_placement", "transformers_loading"):  # asked before, and used
        module = f"workers.engines.{name}"
        monkeypatch.setattr(f"{module}.device_of", lambda _: torch.device("cuda"))
        monkeypatch.setattr(f"{module}.placement", lambda *_: {"device_map": {"": "cpu"}})
    message = await refusal_of(engine_on(tiny_llama, device="cuda", cpu_offloading=True))
    assert "not even room for the model's embeddings" in message
